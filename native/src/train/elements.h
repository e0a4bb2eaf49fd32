// Numbers of tensors: float or bfloat16 in memory, float in the arithmetic; and words of them for matrix products.
#pragma once
#include "../kernels/attention_tiles.h"
#include "train.h"

namespace corral::CORRAL_NAMESPACE {

struct FloatElements {
    using Element = float;
    static F32 load(const float* p) { return F32::load(p); }
    static F32 load_part(const float* p, int count) { return F32::load_part(p, count); }
    static void store(F32 x, float* p) { x.store(p); }
    static void store_part(F32 x, float* p, int count) { x.store_part(p, count); }
    static F32 round(F32 x) { return x; }
};

struct Bf16Elements {
    using Element = uint16_t;
    static F32 load(const uint16_t* p) { return F32::load_bf16(p); }
    static F32 load_part(const uint16_t* p, int count) {
        if (count == kLanes) return load(p);
        uint16_t part[kLanes] = {};
        for (int i = 0; i < count; ++i) part[i] = p[i];
        return load(part);
    }
    static void store(F32 x, uint16_t* p) { x.store_bf16(p); }
    static void store_part(F32 x, uint16_t* p, int count) {
        if (count == kLanes) return store(x, p);
        uint16_t part[kLanes];
        store(x, part);
        for (int i = 0; i < count; ++i) p[i] = part[i];
    }
    // As if it had been stored.
    static F32 round(F32 x) {
        uint16_t part[kLanes];
        store(x, part);
        return load(part);
    }
};

// The words of a type's products: pairs of bfloat16 where the processor multiplies them, else floats.
template <class Elements>
struct WordsOf {
    using Type = FloatWords;
};
#ifdef __AVX512BF16__
template <>
struct WordsOf<Bf16Elements> {
    using Type = Bf16Words;
};
#endif

inline int64_t fewer(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t rounded_up(int64_t a, int64_t unit) { return (a + unit - 1) / unit * unit; }

// Calls body(i, lanes) for 16 elements of [begin, end) at a time; the last time perhaps for fewer.
template <typename Body>
inline void each_part(int64_t begin, int64_t end, Body body) {
    for (; begin + kLanes <= end; begin += kLanes) body(begin, kLanes);
    if (begin < end) body(begin, static_cast<int>(end - begin));
}

// Elements of type Elements as the words of its products.
template <class Elements>
struct Packing {
    using Words = typename WordsOf<Elements>::Type;
    using Element = typename Elements::Element;
    static constexpr int64_t kPerWord = Words::kPerWord;
    static constexpr bool kSame = sizeof(Element) * kPerWord == sizeof(uint32_t);  // words are elements as they lie

    static int64_t words(int64_t elements) { return (elements + kPerWord - 1) / kPerWord; }

    // Whether rows at a distance of `stride` elements can be read as words where they lie.
    static bool in_place(const void* p, int64_t stride) {
        return kSame && stride % kPerWord == 0 && reinterpret_cast<uintptr_t>(p) % sizeof(uint32_t) == 0;
    }

    // `count` elements of a row; zeros up to `words` words.
    static void row(const Element* from, int64_t count, int64_t words, uint32_t* to) {
        if constexpr (kSame) {
            std::memcpy(to, from, count * sizeof(Element));
            std::memset(reinterpret_cast<Element*>(to) + count, 0, (words * kPerWord - count) * sizeof(Element));
        } else {
            float* floats = reinterpret_cast<float*>(to);
            each_part(0, count, [&](int64_t i, int lanes) { Elements::load_part(from + i, lanes).store_part(floats + i, lanes); });
            for (int64_t i = count; i < words; ++i) floats[i] = 0;
        }
    }

    // to[i]: the word of element i of the rows that share it, `rows` of which are there; zeros up to `words`, a multiple of 32.
    static void join(const Element* from, int64_t stride, int64_t rows, int64_t count, int64_t words, uint32_t* to) {
        if constexpr (kPerWord == 1) {
            return rows > 0 ? row(from, count, words, to) : static_cast<void>(std::memset(to, 0, words * sizeof(uint32_t)));
        } else {
            constexpr int64_t kStep = 32;
            alignas(64) Element zeros[kStep] = {}, low[kStep], high[kStep];
            for (int64_t i = 0; i < words; i += kStep, to += kStep) {
                const int64_t here = fewer(kStep, count - i);
                if (here == kStep && rows >= 2) {
                    interleave(from + i, from + stride + i, reinterpret_cast<uint16_t*>(to));
                    continue;
                }
                std::memset(low, 0, sizeof low);
                std::memset(high, 0, sizeof high);
                if (here > 0 && rows > 0) std::memcpy(low, from + i, here * sizeof(Element));
                if (here > 0 && rows > 1) std::memcpy(high, from + stride + i, here * sizeof(Element));
                interleave(rows > 0 ? low : zeros, rows > 1 ? high : zeros, reinterpret_cast<uint16_t*>(to));
            }
        }
    }

    // to[w * to_stride + i]: word w of row i, for 16 rows, of which `rows` are there, each of `count` elements; zeros elsewhere.
    // Whole 16 words are written.
    static void turn(const Element* from, int64_t stride, int64_t rows, int64_t count, uint32_t* to, int64_t to_stride) {
        constexpr int64_t kStep = kLanes * kPerWord;
        const uint32_t* lines[kLanes];
        uint32_t copies[kLanes][kLanes];
        const bool direct = rows == kLanes && in_place(from, stride);
        for (int64_t at = 0; at < count; at += kStep, to += kLanes * to_stride) {
            const bool whole = direct && at + kStep <= count;
            for (int64_t i = 0; i < kLanes; ++i) {
                if (whole) {
                    lines[i] = reinterpret_cast<const uint32_t*>(from + i * stride + at);
                    __builtin_prefetch(lines[i] + kLanes * stride / kPerWord, 0, 2);  // what is turned next, probably
                } else {
                    lines[i] = copies[i];
                    if (i < rows) row(from + i * stride + at, fewer(kStep, count - at), kLanes, copies[i]);
                    else std::memset(copies[i], 0, sizeof copies[i]);
                }
            }
            transpose(lines, 0, to, to_stride);
        }
    }

    // to[c * to_stride + w]: the word of column c of the w-th rows that share one, for 16 words, `rows` rows and `columns`
    // columns being there; zeros elsewhere. Whole 16 columns are written.
    static void turn_joined(const Element* from, int64_t stride, int64_t rows, int64_t columns, uint32_t* to, int64_t to_stride) {
        alignas(64) uint32_t joined[kLanes][2 * kLanes];
        const uint32_t* lines[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) lines[i] = joined[i];
        for (int64_t column = 0; column < columns; column += 2 * kLanes) {
            for (int64_t i = 0; i < fewer(rows, kLanes * kPerWord); ++i)
                __builtin_prefetch(from + i * stride + column + 4 * kLanes, 0, 2);  // no stream that the processor would follow
            for (int64_t i = 0; i < kLanes; ++i)
                join(from + i * kPerWord * stride + column, stride, rows - i * kPerWord, fewer(2 * kLanes, columns - column),
                     2 * kLanes, joined[i]);
            transpose(lines, 0, to + column * to_stride, to_stride);
            if (column + kLanes < columns) transpose(lines, kLanes, to + (column + kLanes) * to_stride, to_stride);
        }
    }

    // Two rows of floats, neighbours in the sum, as words of columns: a vector of words, or two.
    static void put_joined(F32 first, F32 second, uint32_t* to, int64_t stride) {
        if constexpr (kPerWord == 1) {
            first.store(reinterpret_cast<float*>(to));
            second.store(reinterpret_cast<float*>(to + stride));
        } else {
            join_pair(first, second, to);
        }
    }

private:
#ifdef __AVX512BF16__
    static void join_pair(F32 first, F32 second, uint32_t* to) {
        const __m512i halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second.v, first.v));
        const __m512i step = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m512i places = _mm512_or_si512(step, _mm512_slli_epi32(_mm512_add_epi32(step, _mm512_set1_epi32(16)), 16));
        _mm512_storeu_si512(to, _mm512_permutexvar_epi16(places, halves));
    }
#else
    static void join_pair(F32, F32, uint32_t*) {}
#endif
};

// body(Elements) for the elements that a call names.
template <typename Body>
inline auto by_type(int32_t type, Body body) {
    return type == CORRAL_BF16 ? body(Bf16Elements{}) : body(FloatElements{});
}

// out[rows][columns] (+)= left[rows][steps] * right[steps][columns]; whole vectors of columns are read and written.
template <class Words>
inline void multiply_words(const uint32_t* left, int64_t left_stride, const uint32_t* right, int64_t right_stride, int64_t steps,
                           bool add, int64_t rows, int64_t columns, float* out, int64_t out_stride) {
    multiply<Words>({left, left_stride, right, right_stride, kLanes, out, out_stride, steps, add, nullptr, 0}, rows,
                    (columns + kLanes - 1) / kLanes);
}

}  // namespace corral::CORRAL_NAMESPACE
