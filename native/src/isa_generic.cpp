// Any processor: what the compiler takes for granted.
#define CORRAL_NAMESPACE generic
#define CORRAL_PLAIN_VECTORS  // on a Mac the compiler takes for granted what isa_neon.cpp is for
#include "kernels/table.h"

#include "cpu.h"

namespace corral {
constexpr Kernels kGeneric = generic::table("generic");
}  // namespace corral
