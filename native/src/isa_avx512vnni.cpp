// AVX-512 with dot products of bytes (Cascade Lake, Zen 4 and later).
#define CORRAL_NAMESPACE avx512vnni
#include "kernels/table.h"

#include "cpu.h"

namespace corral {
constexpr Kernels kAvx512Vnni = avx512vnni::table("avx512vnni");
}  // namespace corral
