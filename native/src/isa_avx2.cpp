// AVX2 with FMA and F16C (2013 and later).
#define CORRAL_NAMESPACE avx2
#include "kernels/table.h"

#include "cpu.h"

namespace corral {
constexpr Kernels kAvx2 = avx2::table("avx2");
}  // namespace corral
