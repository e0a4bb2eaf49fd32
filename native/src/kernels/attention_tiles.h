// Keys and values of 64 positions, packed so that both products of attention are the same one.
//
// A word holds one float, or two bfloat16 where the processor multiplies pairs of them. In words:
//
//     scores[row][key]      = sum over head_dim of  q[row][w] * keys[w][key]
//     out[row][dimension]  += sum over keys of      probabilities[row][k] * values[k][dimension]
//
// The left factor is broadcast word by word, the right one is read 16 words at a time, and the sum goes along one chain: its
// order is the same for any number of rows.
#pragma once
#include "../kernels.h"
#include "../simd/shuffle.h"

namespace corral::CORRAL_NAMESPACE {

constexpr int kTile = 64;  // positions of a tile; they begin at multiples of it
constexpr int kGroups = kTile / kLanes;

struct FloatWords {
    static constexpr int kPerWord = 1;
    F32 v;
    static FloatWords load(const uint32_t* p) { return {F32::load(reinterpret_cast<const float*>(p))}; }
    static FloatWords broadcast(const uint32_t* p) {
        float x;
        std::memcpy(&x, p, sizeof x);
        return {F32::broadcast(x)};
    }
    static F32 dot(F32 sum, FloatWords b, FloatWords a) { return fma(b.v, a.v, sum); }
    // 32 floats as words.
    static void put(F32 low, F32 high, uint32_t* to) {
        low.store(reinterpret_cast<float*>(to));
        high.store(reinterpret_cast<float*>(to) + kLanes);
    }
    // to[i]: the word of element i of a key's row and the next key's
    static void join(const uint32_t* row, const uint32_t*, int64_t count, uint32_t* to) {
        std::memcpy(to, row, count * sizeof(uint32_t));
    }
};

#ifdef __AVX512BF16__
struct Bf16Words {
    static constexpr int kPerWord = 2;
    Bf16Pairs v;
    static Bf16Words load(const uint32_t* p) { return {Bf16Pairs::load(reinterpret_cast<const uint16_t*>(p))}; }
    static Bf16Words broadcast(const uint32_t* p) { return {Bf16Pairs::broadcast(reinterpret_cast<const uint16_t*>(p))}; }
    static F32 dot(F32 sum, Bf16Words b, Bf16Words a) { return corral::CORRAL_NAMESPACE::dot(sum, b.v, a.v); }
    static void put(F32 low, F32 high, uint32_t* to) { narrow(low, high, reinterpret_cast<uint16_t*>(to)); }
    static void join(const uint32_t* row, const uint32_t* next, int64_t count, uint32_t* to) {
        const uint16_t* a = reinterpret_cast<const uint16_t*>(row);
        const uint16_t* b = reinterpret_cast<const uint16_t*>(next);
        for (int64_t i = 0; i < count; i += 2 * kLanes) interleave(a + i, b + i, reinterpret_cast<uint16_t*>(to + i));
    }
};
#endif

// c[rows][columns] (+)= a[rows][steps] * b[steps][columns]; columns are vectors of 16 words, distances count words.
struct Product {
    const uint32_t* a;
    int64_t a_stride;
    const uint32_t* b;
    int64_t b_stride, b_column;  // from one step to the next, and from one column
    float* c;
    int64_t c_stride;
    int64_t steps;
    bool add;
    const uint32_t* ahead;   // memory that is asked for meanwhile, or null: so many words at each step, for the first rows
    int64_t ahead_step;
};

template <typename Words, int rows, int columns>
inline void multiply_tile(const Product& p, int64_t row, int64_t column) {
    const uint32_t* a = p.a + row * p.a_stride;
    const uint32_t* b = p.b + column * p.b_column;
    float* c = p.c + row * p.c_stride + column * kLanes;
    F32 sums[rows][columns];
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < columns; ++j) sums[i][j] = p.add ? F32::load(c + i * p.c_stride + j * kLanes) : F32::zero();
    const uint32_t* ahead = row == 0 ? p.ahead : nullptr;
    for (int64_t step = 0; step < p.steps; ++step) {
        if (ahead)
            for (int j = 0; j < columns; ++j) __builtin_prefetch(ahead + step * p.ahead_step + (column + j) * kLanes, 0, 2);
        Words right[columns];
#pragma GCC unroll 8
        for (int j = 0; j < columns; ++j) right[j] = Words::load(b + step * p.b_stride + j * p.b_column);
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) {
            const Words left = Words::broadcast(a + i * p.a_stride + step);
#pragma GCC unroll 8
            for (int j = 0; j < columns; ++j) sums[i][j] = Words::dot(sums[i][j], right[j], left);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < columns; ++j) sums[i][j].store(c + i * p.c_stride + j * kLanes);
}

// The rows that are left over: fewer than a tile's.
template <typename Words, int most, int columns>
inline void multiply_rest(const Product& p, int64_t row, int64_t rows, int64_t column) {
    if constexpr (most > 0) {
        if (rows == most) return multiply_tile<Words, most, columns>(p, row, column);
        multiply_rest<Words, most - 1, columns>(p, row, rows, column);
    }
}

template <typename Words, int columns>
inline void multiply_rows(const Product& p, int64_t rows, int64_t column) {
    int64_t row = 0;
    for (; row + kFloatTileRows <= rows; row += kFloatTileRows) multiply_tile<Words, kFloatTileRows, columns>(p, row, column);
    multiply_rest<Words, kFloatTileRows - 1, columns>(p, row, rows - row, column);
}

template <typename Words, int most>
inline void multiply_columns(const Product& p, int64_t rows, int64_t column, int64_t columns) {
    if constexpr (most > 0) {
        for (; columns >= most; columns -= most, column += most) multiply_rows<Words, most>(p, rows, column);
        multiply_columns<Words, most - 1>(p, rows, column, columns);
    }
}

template <typename Words>
inline void multiply(const Product& p, int64_t rows, int64_t columns) {
    multiply_columns<Words, kFloatTileBlocks>(p, rows, 0, columns);
}

// 16 elements of a row of the cache, as they are stored; int8 codes without their scale.
template <CacheType type>
inline F32 widen(const uint8_t* row, int64_t at) {
    if constexpr (type == CacheType::f32) return F32::load(reinterpret_cast<const float*>(row) + at);
    if constexpr (type == CacheType::bf16) return F32::load_bf16(reinterpret_cast<const uint16_t*>(row) + at);
    if constexpr (type == CacheType::f16) return F32::load_f16(reinterpret_cast<const uint16_t*>(row) + at);
    if constexpr (type == CacheType::int8) return F32::from(I32::load_i8(reinterpret_cast<const int8_t*>(row) + at));
}

constexpr int64_t element_size(CacheType type) {
    return type == CacheType::f32 ? 4 : type == CacheType::int8 ? 1 : 2;
}

// A row of the cache or of the queries as words; zeros behind head_dim.
template <typename Words, CacheType type>
inline void convert(const uint8_t* row, int64_t head_dim, int64_t padded, uint32_t* to) {
    constexpr int64_t size = element_size(type);
    const auto part = [&](int64_t at) {
        if (at + kLanes <= head_dim) return widen<type>(row, at);
        uint8_t rest[kLanes * size] = {};
        if (at < head_dim) std::memcpy(rest, row + at * size, (head_dim - at) * size);
        return widen<type>(rest, 0);
    };
    for (int64_t at = 0; at < padded; at += 2 * kLanes)
        Words::put(part(at), part(at + kLanes), to + at / Words::kPerWord);
}

}  // namespace corral::CORRAL_NAMESPACE
