// Activations in the forms that the matrix products take.
#pragma once
#include "../kernels.h"
#include "../simd/simd.h"

namespace corral::CORRAL_NAMESPACE {

// A group's largest magnitude becomes 127. Magnitudes so small that 127 / m is not finite count as zero.
struct GroupScale {
    float scale, inverse;
    explicit GroupScale(int32_t magnitude_bits) {
        float magnitude;
        __builtin_memcpy(&magnitude, &magnitude_bits, sizeof magnitude);
        const bool finite = magnitude_bits < 0x7f800000, zero = magnitude < 1e-36f;
        scale = !finite ? __builtin_nanf("") : zero ? 0.0f : magnitude / 127.0f;
        inverse = !finite || zero ? 0.0f : 127.0f / magnitude;
    }
};

// x[vectors * 16] -> codes; returns their sum. Not finite: the codes are zero, the scale tells.
inline int32_t quantize_group(const F32* x, int vectors, int8_t* codes, float* scale) {
    I32 magnitude = I32::zero();  // floats without their signs are in the order of their bits, NaN last
    for (int i = 0; i < vectors; ++i) magnitude = max(magnitude, I32::bits(x[i]) & I32::broadcast(0x7fffffff));
    const GroupScale group(magnitude.reduce_max());
    *scale = group.scale;
    I32 sum = I32::zero();
    for (int i = 0; i < vectors; ++i) {
        const bool none = group.inverse == 0.0f;
        const I32 code = none ? I32::zero() : I32::round(x[i] * F32::broadcast(group.inverse));
        code.store_i8(codes + i * 16);
        sum = sum + code;
    }
    return sum.reduce_add();
}

inline void quantize(const float* x, int64_t columns, const Activations& to, int64_t row) {
    const int64_t first = row * to.columns;
    for (int64_t k = 0; k < to.columns; k += 32) {
        F32 v[2];
        for (int i = 0; i < 2; ++i) {
            const int64_t left = columns - (k + 16 * i);
            v[i] = left >= 16 ? F32::load(x + k + 16 * i)
                 : left > 0   ? F32::load_part(x + k + 16 * i, static_cast<int>(left))
                              : F32::zero();
            if (to.f32) v[i].store(to.f32 + first + k + 16 * i);
            if (to.bf16) v[i].store_bf16(to.bf16 + first + k + 16 * i);
        }
        if (!to.codes) continue;
        const int vectors = to.group / 16;
        for (int i = 0; i < 2; i += vectors) {
            const int64_t at = first + k + 16 * i, group = at / to.group;
            to.sums[group] = quantize_group(v + i, vectors, to.codes + at, to.scales + group);
        }
    }
}

}  // namespace corral::CORRAL_NAMESPACE
