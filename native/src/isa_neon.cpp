// NEON with dot products of bytes (Armv8.2 with FEAT_DotProd: Apple M1, Graviton 2, Ampere Altra and later).
#define CORRAL_NAMESPACE neon
#include "kernels/table.h"

#include "cpu.h"

namespace corral {
constexpr Kernels kNeon = neon::table("neon");
}  // namespace corral
