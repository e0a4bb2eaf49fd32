// AVX-512 with dot products of bytes and of bfloat16 (Cooper Lake, Sapphire Rapids, Zen 4 and later).
#define CORRAL_NAMESPACE avx512bf16
#include "kernels/table.h"

#include "cpu.h"

namespace corral {
constexpr Kernels kAvx512Bf16 = avx512bf16::table("avx512bf16");
}  // namespace corral
