// Sixteen lanes as AVX-512 registers. Compiled twice: for VNNI alone, and for VNNI with BF16.
// avx2.h, neon.h and generic.h offer the same names; generic.h is the one to read for what they mean.
#pragma once
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12's header makes its undefined vectors in a way that it warns of itself
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace corral::CORRAL_NAMESPACE {

struct F32;

struct I32 {
    __m512i v;

    static I32 zero() { return {_mm512_setzero_si512()}; }
    static I32 broadcast(int32_t x) { return {_mm512_set1_epi32(x)}; }
    static I32 load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
    static I32 load_i8(const int8_t* p) {
        return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
    }
    static I32 round(F32 x);
    static I32 bits(F32 x);
    void store(int32_t* p) const { _mm512_storeu_si512(p, v); }
    void store_i8(int8_t* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v)); }
    int32_t reduce_add() const { return _mm512_reduce_add_epi32(v); }
    int32_t reduce_max() const { return _mm512_reduce_max_epi32(v); }
};

inline I32 operator+(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32 operator-(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I32 operator&(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I32 operator|(I32 a, I32 b) { return {_mm512_or_si512(a.v, b.v)}; }
inline I32 max(I32 a, I32 b) { return {_mm512_max_epi32(a.v, b.v)}; }
template <int n>
inline I32 shift_left(I32 a) { return {_mm512_slli_epi32(a.v, n)}; }
template <int n>
inline I32 shift_right(I32 a) { return {_mm512_srli_epi32(a.v, n)}; }

struct F32 {
    __m512 v;

    static F32 zero() { return {_mm512_setzero_ps()}; }
    static F32 broadcast(float x) { return {_mm512_set1_ps(x)}; }
    static F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static F32 load_part(const float* p, int count) { return {_mm512_maskz_loadu_ps(mask(count), p)}; }
    static F32 load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
    static F32 load_bf16(const uint16_t* p) {
        const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
    }
    static F32 from(I32 x) { return {_mm512_cvtepi32_ps(x.v)}; }
    static F32 from_bits(I32 x) { return {_mm512_castsi512_ps(x.v)}; }

    void store(float* p) const { _mm512_storeu_ps(p, v); }
    void store_part(float* p, int count) const { _mm512_mask_storeu_ps(p, mask(count), v); }
    void store_bf16(uint16_t* p) const {
        const __m512i bits = _mm512_castps_si512(v);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
        const __m512i result = _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(result));
    }
    void store_f16(uint16_t* p) const {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }

    float reduce_add() const { return _mm512_reduce_add_ps(v); }
    float reduce_max() const { return _mm512_reduce_max_ps(v); }
    bool any_nan() const { return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q) != 0; }
    // The lanes that are at least x, as bits.
    unsigned from(float x) const { return _mm512_cmp_ps_mask(v, _mm512_set1_ps(x), _CMP_GE_OQ); }
    // The first lane that equals x, or -1.
    int find(float x) const {
        const unsigned same = _mm512_cmp_ps_mask(v, _mm512_set1_ps(x), _CMP_EQ_OQ);
        return same ? __builtin_ctz(same) : -1;
    }

private:
    static __mmask16 mask(int count) { return static_cast<__mmask16>((1u << count) - 1); }
};

inline F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32 round(F32 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F32 scale_by_power(F32 a, F32 n) { return {_mm512_scalef_ps(a.v, n.v)}; }

inline I32 I32::round(F32 x) { return {_mm512_cvtps_epi32(x.v)}; }
inline I32 I32::bits(F32 x) { return {_mm512_castps_si512(x.v)}; }

struct Levels {
    __m512i v;
    explicit Levels(const uint8_t* p)
        : v(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))) {}
};

struct U8x64 {
    __m512i v;

    static U8x64 load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
    void store(uint8_t* p) const { _mm512_storeu_si512(p, v); }
    U8x64 low_nibbles() const { return {_mm512_and_si512(v, _mm512_set1_epi8(15))}; }
    U8x64 high_nibbles() const { return {_mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15))}; }
    U8x64 lookup(Levels levels) const { return {_mm512_shuffle_epi8(levels.v, v)}; }
    I32 words() const { return {v}; }
};

constexpr int kByteOffset = 0;
inline I32 dot(I32 acc, U8x64 w, I32 x) { return {_mm512_dpbusd_epi32(acc.v, w.v, x.v)}; }
inline I32 dot_nibbles(I32 acc, U8x64 w, I32 x) { return dot(acc, w, x); }

#ifdef __AVX512BF16__

struct Bf16Pairs {
    __m512bh v;
    static Bf16Pairs load(const uint16_t* p) { return {reinterpret_cast<__m512bh>(_mm512_loadu_si512(p))}; }
    static Bf16Pairs broadcast(const uint16_t* p) {
        int32_t pair;
        std::memcpy(&pair, p, sizeof pair);
        return {reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair))};
    }
};
inline F32 dot(F32 acc, Bf16Pairs w, Bf16Pairs x) { return {_mm512_dpbf16_ps(acc.v, w.v, x.v)}; }

#endif

// Tiles of a matrix product, blocks x rows, as many as 32 registers hold.
constexpr int kCodeTileBlocks = 3, kCodeTileRows = 4;    // an integer and a float accumulator each
constexpr int kFewRows = 8;  // up to so many, weights go from memory through registers, and no tiles are cut
constexpr int kFloatTileBlocks = 4, kFloatTileRows = 5;

}  // namespace corral::CORRAL_NAMESPACE

#ifndef __AVX512BF16__
#include "bf16_pairs.h"
#endif
#include "exp.h"
