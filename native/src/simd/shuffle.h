// Words and halves of words put in another order: what attention needs beside the vectors of this folder's other headers.
//
// A word is 32 bits: a float, or two bfloat16 that lie next to each other.
#pragma once
#include "simd.h"

namespace corral::CORRAL_NAMESPACE {

// to[j * stride + i] = from[i][j]   for 16 rows of 16 words.
#if defined(__AVX512F__)

inline __m512i quarters(const uint32_t* a, const uint32_t* b, const uint32_t* c, const uint32_t* d) {
    const auto load = [](const uint32_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); };
    const __m512i first = _mm512_inserti32x4(_mm512_castsi128_si512(load(a)), load(b), 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(first, load(c), 2), load(d), 3);
}

inline void transpose(const uint32_t* const* from, int64_t at, uint32_t* to, int64_t stride) {
    for (int j = 0; j < 16; j += 4) {  // four columns: a quarter of a register holds them for row i, i + 4, i + 8, i + 12
        __m512i row[4];
        for (int i = 0; i < 4; ++i)
            row[i] = quarters(from[i] + at + j, from[i + 4] + at + j, from[i + 8] + at + j, from[i + 12] + at + j);
        const __m512i a = _mm512_unpacklo_epi32(row[0], row[1]), b = _mm512_unpackhi_epi32(row[0], row[1]);
        const __m512i c = _mm512_unpacklo_epi32(row[2], row[3]), d = _mm512_unpackhi_epi32(row[2], row[3]);
        _mm512_storeu_si512(to + (j + 0) * stride, _mm512_unpacklo_epi64(a, c));
        _mm512_storeu_si512(to + (j + 1) * stride, _mm512_unpackhi_epi64(a, c));
        _mm512_storeu_si512(to + (j + 2) * stride, _mm512_unpacklo_epi64(b, d));
        _mm512_storeu_si512(to + (j + 3) * stride, _mm512_unpackhi_epi64(b, d));
    }
}

#elif defined(__AVX2__)

inline __m256i halves(const uint32_t* a, const uint32_t* b) {
    const auto load = [](const uint32_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); };
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load(a)), load(b), 1);
}

inline void transpose(const uint32_t* const* from, int64_t at, uint32_t* to, int64_t stride) {
    for (int half = 0; half < 16; half += 8)
        for (int j = 0; j < 16; j += 4) {  // four columns: half a register holds them for row i and i + 4
            __m256i row[4];
            for (int i = 0; i < 4; ++i) row[i] = halves(from[half + i] + at + j, from[half + i + 4] + at + j);
            const __m256i a = _mm256_unpacklo_epi32(row[0], row[1]), b = _mm256_unpackhi_epi32(row[0], row[1]);
            const __m256i c = _mm256_unpacklo_epi32(row[2], row[3]), d = _mm256_unpackhi_epi32(row[2], row[3]);
            const auto put = [&](int column, __m256i x) {
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + (j + column) * stride + half), x);
            };
            put(0, _mm256_unpacklo_epi64(a, c));
            put(1, _mm256_unpackhi_epi64(a, c));
            put(2, _mm256_unpacklo_epi64(b, d));
            put(3, _mm256_unpackhi_epi64(b, d));
        }
}

#elif defined(CORRAL_NEON)

inline void transpose(const uint32_t* const* from, int64_t at, uint32_t* to, int64_t stride) {
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 16; j += 4) {  // a register holds four columns of a row, then four rows of a column
            uint32x4_t row[4];
            for (int k = 0; k < 4; ++k) row[k] = vld1q_u32(from[i + k] + at + j);
            const auto pairs = [](uint32x4_t x) { return vreinterpretq_u64_u32(x); };
            const uint64x2_t a = pairs(vtrn1q_u32(row[0], row[1])), b = pairs(vtrn2q_u32(row[0], row[1]));
            const uint64x2_t c = pairs(vtrn1q_u32(row[2], row[3])), d = pairs(vtrn2q_u32(row[2], row[3]));
            const auto put = [&](int column, uint64x2_t x) {
                vst1q_u32(to + (j + column) * stride + i, vreinterpretq_u32_u64(x));
            };
            put(0, vtrn1q_u64(a, c));
            put(1, vtrn1q_u64(b, d));
            put(2, vtrn2q_u64(a, c));
            put(3, vtrn2q_u64(b, d));
        }
}

#else

inline void transpose(const uint32_t* const* from, int64_t at, uint32_t* to, int64_t stride) {
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) to[j * stride + i] = from[i][at + j];
}

#endif

#ifdef __AVX512BF16__

// 32 floats as bfloat16, to the nearest even; subnormal ones become zero.
inline void narrow(F32 low, F32 high, uint16_t* to) {
    _mm512_storeu_si512(to, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v)));
}

// to[2 i], to[2 i + 1] = a[i], b[i]   for 32 halves.
inline void interleave(const uint16_t* a, const uint16_t* b, uint16_t* to) {
    const __m512i x = _mm512_loadu_si512(a), y = _mm512_loadu_si512(b);
    const __m512i two = _mm512_set1_epi32(0x00200000);  // places 0 and 32: from x and from y
    const __m512i step = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i low = _mm512_add_epi16(two, _mm512_or_si512(step, _mm512_slli_epi32(step, 16)));
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(x, low, y));
    _mm512_storeu_si512(to + 32, _mm512_permutex2var_epi16(x, high, y));
}

#endif

}  // namespace corral::CORRAL_NAMESPACE
