// Sixteen lanes as two AVX registers; AVX2, FMA and F16C. The names mean what they mean in generic.h.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace corral::CORRAL_NAMESPACE {

struct F32;

struct I32 {
    __m256i a, b;

    static I32 zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
    static I32 broadcast(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
    static I32 load(const int32_t* p) {
        return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
    }
    static I32 load_i8(const int8_t* p) {
        const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return {_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))};
    }
    static I32 round(F32 x);
    static I32 bits(F32 x);
    void store(int32_t* p) const {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), b);
    }
    void store_i8(int8_t* p) const {
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);  // packs works in halves
        const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
    }
    int32_t reduce_add() const {
        __m256i s = _mm256_add_epi32(a, b);
        __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
        t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
        t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1));
        return _mm_cvtsi128_si32(t);
    }
    int32_t reduce_max() const {
        __m256i s = _mm256_max_epi32(a, b);
        __m128i t = _mm_max_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
        t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0x4e));
        t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0xb1));
        return _mm_cvtsi128_si32(t);
    }
};

inline I32 operator+(I32 x, I32 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline I32 operator-(I32 x, I32 y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
inline I32 operator&(I32 x, I32 y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
inline I32 operator|(I32 x, I32 y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
inline I32 max(I32 x, I32 y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
template <int n>
inline I32 shift_left(I32 x) { return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
template <int n>
inline I32 shift_right(I32 x) { return {_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)}; }

struct F32 {
    __m256 a, b;

    static F32 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static F32 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
    static F32 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static F32 load_part(const float* p, int count) {
        return {_mm256_maskload_ps(p, mask(count)), _mm256_maskload_ps(p + 8, mask(count - 8))};
    }
    static F32 load_f16(const uint16_t* p) {
        return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
                _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
    }
    static F32 load_bf16(const uint16_t* p) { return {widen(p), widen(p + 8)}; }
    static F32 from(I32 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
    static F32 from_bits(I32 x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }

    void store(float* p) const { _mm256_storeu_ps(p, a), _mm256_storeu_ps(p + 8, b); }
    void store_part(float* p, int count) const {
        _mm256_maskstore_ps(p, mask(count), a);
        _mm256_maskstore_ps(p + 8, mask(count - 8), b);
    }
    void store_bf16(uint16_t* p) const {
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(narrow(a), narrow(b)), 0xd8);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), words);
    }
    void store_f16(uint16_t* p) const {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT));
    }

    float reduce_add() const {
        const __m256 s = _mm256_add_ps(a, b);
        __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
        t = _mm_add_ps(t, _mm_movehl_ps(t, t));
        return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
    }
    float reduce_max() const {
        const __m256 s = _mm256_max_ps(a, b);
        __m128 t = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
        t = _mm_max_ps(t, _mm_movehl_ps(t, t));
        return _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));
    }
    bool any_nan() const {
        const __m256 nan = _mm256_or_ps(_mm256_cmp_ps(a, a, _CMP_UNORD_Q), _mm256_cmp_ps(b, b, _CMP_UNORD_Q));
        return _mm256_movemask_ps(nan) != 0;
    }
    unsigned from(float x) const {  // the lanes that are at least x, as bits
        const __m256 value = _mm256_set1_ps(x);
        return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, value, _CMP_GE_OQ)) |
                                     _mm256_movemask_ps(_mm256_cmp_ps(b, value, _CMP_GE_OQ)) << 8);
    }
    int find(float x) const {
        const __m256 value = _mm256_set1_ps(x);
        const int same = _mm256_movemask_ps(_mm256_cmp_ps(a, value, _CMP_EQ_OQ)) |
                         _mm256_movemask_ps(_mm256_cmp_ps(b, value, _CMP_EQ_OQ)) << 8;
        return same ? __builtin_ctz(static_cast<unsigned>(same)) : -1;
    }

private:
    static __m256i mask(int count) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    static __m256 widen(const uint16_t* p) {
        const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
    static __m256i narrow(__m256 x) {
        const __m256i bits = _mm256_castps_si256(x);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    }
};

inline F32 operator+(F32 x, F32 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F32 operator-(F32 x, F32 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F32 operator*(F32 x, F32 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F32 operator/(F32 x, F32 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F32 fma(F32 x, F32 y, F32 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F32 max(F32 x, F32 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F32 min(F32 x, F32 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F32 round(F32 x) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, nearest), _mm256_round_ps(x.b, nearest)};
}

inline I32 I32::round(F32 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline I32 I32::bits(F32 x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }

// In two steps, of which each factor is a normal number: the last one rounds, once.
inline F32 scale_by_power(F32 x, F32 n) {
    const F32 half = round(n * F32::broadcast(0.5f));
    const I32 bias = I32::broadcast(127);
    const F32 first = F32::from_bits(shift_left<23>(I32::round(half) + bias));
    const F32 second = F32::from_bits(shift_left<23>(I32::round(n - half) + bias));
    return x * first * second;
}

struct Levels {
    __m256i v;
    explicit Levels(const uint8_t* p)
        : v(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))) {}
};

struct U8x64 {
    __m256i a, b;

    static U8x64 load(const uint8_t* p) {
        return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
    }
    void store(uint8_t* p) const {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), b);
    }
    U8x64 low_nibbles() const {
        const __m256i mask = _mm256_set1_epi8(15);
        return {_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)};
    }
    U8x64 high_nibbles() const {
        const __m256i mask = _mm256_set1_epi8(15);
        return {_mm256_and_si256(_mm256_srli_epi16(a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(b, 4), mask)};
    }
    U8x64 lookup(Levels levels) const {
        return {_mm256_shuffle_epi8(levels.v, a), _mm256_shuffle_epi8(levels.v, b)};
    }
    I32 words() const { return {a, b}; }
};

// maddubs adds two products of a byte without a sign and one with a sign in 16 bits, and saturates. Bytes up to 15 are far
// from that. For other bytes, w - 128 has a sign; its absolute value, at most 128, times x with the sign moved over to it
// stays below 2 * 128 * 127 = 32512.
constexpr int kByteOffset = 128;

inline __m256i add_quads(__m256i acc, __m256i pairs) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline I32 dot_nibbles(I32 acc, U8x64 w, I32 x) {
    return {add_quads(acc.a, _mm256_maddubs_epi16(w.a, x.a)), add_quads(acc.b, _mm256_maddubs_epi16(w.b, x.b))};
}
inline __m256i signed_pairs(__m256i w, __m256i x) {
    const __m256i centered = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    return _mm256_maddubs_epi16(_mm256_abs_epi8(centered), _mm256_sign_epi8(x, centered));
}
inline I32 dot(I32 acc, U8x64 w, I32 x) {
    return {add_quads(acc.a, signed_pairs(w.a, x.a)), add_quads(acc.b, signed_pairs(w.b, x.b))};
}

// 16 registers, two to a vector.
constexpr int kCodeTileBlocks = 1, kCodeTileRows = 3;
constexpr int kFewRows = 4;  // up to so many, weights go from memory through registers, and no tiles are cut
constexpr int kFloatTileBlocks = 1, kFloatTileRows = 4;

}  // namespace corral::CORRAL_NAMESPACE

#include "bf16_pairs.h"
#include "exp.h"
