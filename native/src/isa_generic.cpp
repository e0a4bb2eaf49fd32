// Any processor: what the compiler takes for granted.
#define CORRAL_NAMESPACE generic
#include "kernels/table.h"

#include "cpu.h"

namespace corral {
constexpr Kernels kGeneric = generic::table("generic");
}  // namespace corral
