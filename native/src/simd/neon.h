// Sixteen lanes as four NEON registers; dot products of bytes (FEAT_DotProd). The names mean what they mean in generic.h, and
// the results are the same bits as its own.
#pragma once
#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace corral::CORRAL_NAMESPACE {

struct F32;

struct I32 {
    int32x4_t a, b, c, d;

    static I32 zero() { return broadcast(0); }
    static I32 broadcast(int32_t x) {
        const int32x4_t v = vdupq_n_s32(x);
        return {v, v, v, v};
    }
    static I32 load(const int32_t* p) { return {vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)}; }
    static I32 load_i8(const int8_t* p) {
        const int8x16_t bytes = vld1q_s8(p);
        const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
        return {vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)};
    }
    static I32 round(F32 x);
    static I32 bits(F32 x);
    void store(int32_t* p) const { vst1q_s32(p, a), vst1q_s32(p + 4, b), vst1q_s32(p + 8, c), vst1q_s32(p + 12, d); }
    void store_i8(int8_t* p) const {
        const int16x8_t low = vmovn_high_s32(vmovn_s32(a), b), high = vmovn_high_s32(vmovn_s32(c), d);
        vst1q_s8(p, vmovn_high_s16(vmovn_s16(low), high));
    }
    int32_t reduce_add() const { return vaddvq_s32(vaddq_s32(vaddq_s32(a, c), vaddq_s32(b, d))); }
    int32_t reduce_max() const { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a, c), vmaxq_s32(b, d))); }
};

inline I32 operator+(I32 x, I32 y) {
    return {vaddq_s32(x.a, y.a), vaddq_s32(x.b, y.b), vaddq_s32(x.c, y.c), vaddq_s32(x.d, y.d)};
}
inline I32 operator-(I32 x, I32 y) {
    return {vsubq_s32(x.a, y.a), vsubq_s32(x.b, y.b), vsubq_s32(x.c, y.c), vsubq_s32(x.d, y.d)};
}
inline I32 operator&(I32 x, I32 y) {
    return {vandq_s32(x.a, y.a), vandq_s32(x.b, y.b), vandq_s32(x.c, y.c), vandq_s32(x.d, y.d)};
}
inline I32 operator|(I32 x, I32 y) {
    return {vorrq_s32(x.a, y.a), vorrq_s32(x.b, y.b), vorrq_s32(x.c, y.c), vorrq_s32(x.d, y.d)};
}
inline I32 max(I32 x, I32 y) {
    return {vmaxq_s32(x.a, y.a), vmaxq_s32(x.b, y.b), vmaxq_s32(x.c, y.c), vmaxq_s32(x.d, y.d)};
}
template <int n>
inline I32 shift_left(I32 x) {
    return {vshlq_n_s32(x.a, n), vshlq_n_s32(x.b, n), vshlq_n_s32(x.c, n), vshlq_n_s32(x.d, n)};
}
template <int n>
inline int32x4_t shift_right_quarter(int32x4_t x) {
    return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(x), n));
}
template <int n>
inline I32 shift_right(I32 x) {
    return {shift_right_quarter<n>(x.a), shift_right_quarter<n>(x.b), shift_right_quarter<n>(x.c), shift_right_quarter<n>(x.d)};
}

struct F32 {
    float32x4_t a, b, c, d;

    static F32 zero() { return broadcast(0.0f); }
    static F32 broadcast(float x) {
        const float32x4_t v = vdupq_n_f32(x);
        return {v, v, v, v};
    }
    static F32 load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
    static F32 load_part(const float* p, int count) {
        if (count == 16) return load(p);
        float part[16] = {};
        for (int i = 0; i < count; ++i) part[i] = p[i];
        return load(part);
    }
    static F32 load_f16(const uint16_t* p) {
        const float16x8_t low = vreinterpretq_f16_u16(vld1q_u16(p)), high = vreinterpretq_f16_u16(vld1q_u16(p + 8));
        return {vcvt_f32_f16(vget_low_f16(low)), vcvt_high_f32_f16(low), vcvt_f32_f16(vget_low_f16(high)),
                vcvt_high_f32_f16(high)};
    }
    static F32 load_bf16(const uint16_t* p) {
        const uint16x8_t low = vld1q_u16(p), high = vld1q_u16(p + 8);
        return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(low), 16)), vreinterpretq_f32_u32(vshll_high_n_u16(low, 16)),
                vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(high), 16)), vreinterpretq_f32_u32(vshll_high_n_u16(high, 16))};
    }
    static F32 from(I32 x) { return {vcvtq_f32_s32(x.a), vcvtq_f32_s32(x.b), vcvtq_f32_s32(x.c), vcvtq_f32_s32(x.d)}; }
    static F32 from_bits(I32 x) {
        return {vreinterpretq_f32_s32(x.a), vreinterpretq_f32_s32(x.b), vreinterpretq_f32_s32(x.c), vreinterpretq_f32_s32(x.d)};
    }

    void store(float* p) const { vst1q_f32(p, a), vst1q_f32(p + 4, b), vst1q_f32(p + 8, c), vst1q_f32(p + 12, d); }
    void store_part(float* p, int count) const {
        if (count == 16) return store(p);
        float part[16];
        store(part);
        for (int i = 0; i < count; ++i) p[i] = part[i];
    }
    void store_bf16(uint16_t* p) const {
        vst1q_u16(p, vshrn_high_n_u32(vshrn_n_u32(narrow(a), 16), narrow(b), 16));
        vst1q_u16(p + 8, vshrn_high_n_u32(vshrn_n_u32(narrow(c), 16), narrow(d), 16));
    }
    void store_f16(uint16_t* p) const {
        vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(a), b)));
        vst1q_u16(p + 8, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(c), d)));
    }

    // Halves, quarters, ... added to each other. (vaddvq_f32 adds neighbours first, which rounds otherwise.)
    float reduce_add() const {
        const float32x4_t four = vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d));
        const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
        return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
    }
    float reduce_max() const { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a, c), vmaxq_f32(b, d))); }
    bool any_nan() const {
        const uint32x4_t first = vandq_u32(vceqq_f32(a, a), vceqq_f32(b, b));
        const uint32x4_t second = vandq_u32(vceqq_f32(c, c), vceqq_f32(d, d));
        return vminvq_u32(vandq_u32(first, second)) == 0;
    }
    unsigned from(float x) const {  // the lanes that are at least x, as bits
        const float32x4_t v = vdupq_n_f32(x);
        return lanes(vcgeq_f32(a, v), vcgeq_f32(b, v), vcgeq_f32(c, v), vcgeq_f32(d, v));
    }
    int find(float x) const {
        const float32x4_t v = vdupq_n_f32(x);
        const unsigned same = lanes(vceqq_f32(a, v), vceqq_f32(b, v), vceqq_f32(c, v), vceqq_f32(d, v));
        return same ? __builtin_ctz(same) : -1;
    }

private:
    // The upper half of each lane is its bfloat16.
    static uint32x4_t narrow(float32x4_t x) {
        const uint32x4_t bits = vreinterpretq_u32_f32(x);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
        return vbslq_u32(vceqq_f32(x, x), rounded, quiet);
    }
    // Masks of four lanes each, as 16 bits.
    static unsigned lanes(uint32x4_t p, uint32x4_t q, uint32x4_t r, uint32x4_t s) {
        const uint16x8_t low = vmovn_high_u32(vmovn_u32(p), q), high = vmovn_high_u32(vmovn_u32(r), s);
        const uint8x16_t mask = vmovn_high_u16(vmovn_u16(low), high);
        const uint8x16_t bits = vandq_u8(mask, vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201)));
        return vaddv_u8(vget_low_u8(bits)) | static_cast<unsigned>(vaddv_u8(vget_high_u8(bits))) << 8;
    }
};

inline F32 operator+(F32 x, F32 y) {
    return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b), vaddq_f32(x.c, y.c), vaddq_f32(x.d, y.d)};
}
inline F32 operator-(F32 x, F32 y) {
    return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b), vsubq_f32(x.c, y.c), vsubq_f32(x.d, y.d)};
}
inline F32 operator*(F32 x, F32 y) {
    return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b), vmulq_f32(x.c, y.c), vmulq_f32(x.d, y.d)};
}
inline F32 operator/(F32 x, F32 y) {
    return {vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b), vdivq_f32(x.c, y.c), vdivq_f32(x.d, y.d)};
}
inline F32 fma(F32 x, F32 y, F32 z) {
    return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c), vfmaq_f32(z.d, x.d, y.d)};
}
// By comparison: fmax and fmaxnm have other ideas of NaN and of zeros than "of two operands the second".
inline float32x4_t larger(float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
inline float32x4_t smaller(float32x4_t x, float32x4_t y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
inline F32 max(F32 x, F32 y) { return {larger(x.a, y.a), larger(x.b, y.b), larger(x.c, y.c), larger(x.d, y.d)}; }
inline F32 min(F32 x, F32 y) { return {smaller(x.a, y.a), smaller(x.b, y.b), smaller(x.c, y.c), smaller(x.d, y.d)}; }
inline F32 round(F32 x) { return {vrndnq_f32(x.a), vrndnq_f32(x.b), vrndnq_f32(x.c), vrndnq_f32(x.d)}; }

inline I32 I32::round(F32 x) { return {vcvtnq_s32_f32(x.a), vcvtnq_s32_f32(x.b), vcvtnq_s32_f32(x.c), vcvtnq_s32_f32(x.d)}; }
inline I32 I32::bits(F32 x) {
    return {vreinterpretq_s32_f32(x.a), vreinterpretq_s32_f32(x.b), vreinterpretq_s32_f32(x.c), vreinterpretq_s32_f32(x.d)};
}

// In two steps, of which each factor is a normal number: the last one rounds, once.
inline F32 scale_by_power(F32 x, F32 n) {
    const F32 half = round(n * F32::broadcast(0.5f));
    const I32 bias = I32::broadcast(127);
    const F32 first = F32::from_bits(shift_left<23>(I32::round(half) + bias));
    const F32 second = F32::from_bits(shift_left<23>(I32::round(n - half) + bias));
    return x * first * second;
}

struct Levels {
    uint8x16_t v;
    explicit Levels(const uint8_t* p) : v(vld1q_u8(p)) {}
};

struct U8x64 {
    uint8x16_t a, b, c, d;

    static U8x64 load(const uint8_t* p) { return {vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}; }
    void store(uint8_t* p) const { vst1q_u8(p, a), vst1q_u8(p + 16, b), vst1q_u8(p + 32, c), vst1q_u8(p + 48, d); }
    U8x64 low_nibbles() const {
        const uint8x16_t mask = vdupq_n_u8(15);
        return {vandq_u8(a, mask), vandq_u8(b, mask), vandq_u8(c, mask), vandq_u8(d, mask)};
    }
    U8x64 high_nibbles() const { return {vshrq_n_u8(a, 4), vshrq_n_u8(b, 4), vshrq_n_u8(c, 4), vshrq_n_u8(d, 4)}; }
    U8x64 lookup(Levels levels) const {
        return {vqtbl1q_u8(levels.v, a), vqtbl1q_u8(levels.v, b), vqtbl1q_u8(levels.v, c), vqtbl1q_u8(levels.v, d)};
    }
    I32 words() const {
        return {vreinterpretq_s32_u8(a), vreinterpretq_s32_u8(b), vreinterpretq_s32_u8(c), vreinterpretq_s32_u8(d)};
    }
};

// sdot multiplies bytes that have a sign: the code minus 128, which is the code with its highest bit turned over.
constexpr int kByteOffset = 128;

inline int32x4_t add_quads(int32x4_t acc, uint8x16_t w, int32x4_t x) {
    return vdotq_s32(acc, vreinterpretq_s8_u8(w), vreinterpretq_s8_s32(x));
}
inline I32 dot_nibbles(I32 acc, U8x64 w, I32 x) {
    return {add_quads(acc.a, w.a, x.a), add_quads(acc.b, w.b, x.b), add_quads(acc.c, w.c, x.c), add_quads(acc.d, w.d, x.d)};
}
inline I32 dot(I32 acc, U8x64 w, I32 x) {
    const uint8x16_t sign = vdupq_n_u8(128);
    return dot_nibbles(acc, {veorq_u8(w.a, sign), veorq_u8(w.b, sign), veorq_u8(w.c, sign), veorq_u8(w.d, sign)}, x);
}

// 32 registers, four to a vector.
constexpr int kCodeTileBlocks = 1, kCodeTileRows = 4;
constexpr int kFewRows = 4;  // up to so many, weights go from memory through registers, and no tiles are cut
constexpr int kFloatTileBlocks = 1, kFloatTileRows = 5;

}  // namespace corral::CORRAL_NAMESPACE

#include "bf16_pairs.h"
#include "exp.h"
