// Generic kernels whose multiply-adds round once: compiled with FMA, which the generic ones for any processor cannot be.
#define CORRAL_NAMESPACE fused
#include "kernels/table.h"

namespace corral {
extern const Kernels kFused;
constexpr Kernels kFused = fused::table("generic with FMA");
}  // namespace corral
