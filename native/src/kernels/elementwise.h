// What is done to one row of floats at a time, and how a token's key and value are stored.
#pragma once
#include "../kernels.h"
#include "../simd/simd.h"

namespace corral::CORRAL_NAMESPACE {

inline int part_of(int64_t i, int64_t count) { return static_cast<int>(count - i < kLanes ? count - i : kLanes); }

// Calls body(i, lanes) for 16 elements at a time; the last time perhaps for fewer.
template <typename Body>
inline void each_vector(int64_t count, Body body) {
    for (int64_t i = 0; i < count; i += kLanes) body(i, part_of(i, count));
}

inline void rms_norm(const float* x, const float* weight, float eps, int64_t columns, float* out) {
    F32 sums[4] = {F32::zero(), F32::zero(), F32::zero(), F32::zero()};  // four chains hide the latency of an addition
    each_vector(columns, [&](int64_t i, int lanes) {
        const F32 v = F32::load_part(x + i, lanes);
        F32& sum = sums[i / kLanes % 4];
        sum = fma(v, v, sum);
    });
    const float sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])).reduce_add();
    const F32 inverse = F32::broadcast(1.0f / __builtin_sqrtf(sum / static_cast<float>(columns) + eps));
    each_vector(columns, [&](int64_t i, int lanes) {
        (F32::load_part(x + i, lanes) * inverse * F32::load_part(weight + i, lanes)).store_part(out + i, lanes);
    });
}

inline void swiglu(const float* gate, const float* up, int64_t columns, float* out) {
    const F32 one = F32::broadcast(1.0f);
    each_vector(columns, [&](int64_t i, int lanes) {
        const F32 x = F32::load_part(gate + i, lanes);
        (x / (one + exp(F32::zero() - x)) * F32::load_part(up + i, lanes)).store_part(out + i, lanes);
    });
}

inline void rotate(float* x, int32_t heads, int32_t head_dim, const float* cos, const float* sin) {
    const int32_t half = head_dim / 2;
    for (int32_t head = 0; head < heads; ++head, x += head_dim)
        each_vector(half, [&](int64_t i, int lanes) {
            const F32 first = F32::load_part(x + i, lanes), second = F32::load_part(x + half + i, lanes);
            const F32 c = F32::load_part(cos + i, lanes), s = F32::load_part(sin + i, lanes);
            (first * c - second * s).store_part(x + i, lanes);
            (second * c + first * s).store_part(x + half + i, lanes);
        });
}

// Halves of a row: `convert` makes 16 of them from a vector.
template <typename Convert>
inline void store_halves(const float* x, int64_t count, uint16_t* to, Convert convert) {
    each_vector(count, [&](int64_t i, int lanes) {
        uint16_t part[kLanes];
        convert(F32::load_part(x + i, lanes), part);
        std::memcpy(to + i, part, sizeof(uint16_t) * lanes);
    });
}

// Codes of one token's head. The scale is absmax / 127, rounded to bfloat16 before the codes are made with it. A row that
// holds NaN or infinity gets a scale that is not finite, and codes of 0: it comes back as NaN.
inline void store_codes(const float* x, int64_t count, int8_t* codes, uint16_t* scale) {
    F32 most = F32::zero();
    bool nan = false;
    each_vector(count, [&](int64_t i, int lanes) {
        const F32 v = F32::load_part(x + i, lanes);
        nan = nan || v.any_nan();
        most = max(most, max(v, F32::zero() - v));
    });
    const float exact = nan ? __builtin_nanf("") : most.reduce_max() / 127.0f;
    uint16_t rounded[kLanes];
    F32::broadcast(exact).store_bf16(rounded);
    *scale = rounded[0];
    const uint32_t bits = uint32_t{rounded[0]} << 16;
    float step;
    std::memcpy(&step, &bits, sizeof step);
    if (!(step <= 3.4028235e38f)) {  // infinite or NaN
        std::memset(codes, 0, count);
        return;
    }
    const F32 divisor = F32::broadcast(step < 1.17549435e-38f ? 1.17549435e-38f : step);
    const F32 limit = F32::broadcast(127.0f);
    each_vector(count, [&](int64_t i, int lanes) {
        const F32 value = min(limit, max(F32::zero() - limit, F32::load_part(x + i, lanes) / divisor));
        int8_t part[kLanes];
        I32::round(value).store_i8(part);
        std::memcpy(codes + i, part, lanes);
    });
}

// One token among its neighbours of CacheType::bf16_pairs. Other threads may write those at the same time.
inline void store_pairs(const CacheLayer& cache, const Heads& heads, int64_t head, int64_t slot, const float* k, const float* v) {
    const int64_t head_dim = heads.head_dim, all = cache.slots * head_dim;
    uint16_t* keys = reinterpret_cast<uint16_t*>(cache.data) + head * all;
    uint16_t* values = keys + heads.kv_heads * all + slot / 2 * 2 * head_dim + slot % 2;
    keys += slot / kLanes * kLanes * head_dim + slot % kLanes * 2;
    for (int64_t first = 0; first < head_dim; first += kLanes) {
        uint16_t key[kLanes], value[kLanes];
        F32::load(k + first).store_bf16(key);
        F32::load(v + first).store_bf16(value);
        for (int i = 0; i < kLanes; i += 2, keys += 2 * kLanes) std::memcpy(keys, key + i, 2 * sizeof(uint16_t));
        for (int i = 0; i < kLanes; ++i, values += 2) *values = value[i];
    }
}

inline void store_row(const CacheLayer& cache, int64_t row, int64_t head_dim, const float* x) {
    uint16_t* halves = reinterpret_cast<uint16_t*>(cache.data) + row * head_dim;
    switch (cache.type) {
        case CacheType::f32:
            std::memcpy(cache.data + row * head_dim * sizeof(float), x, head_dim * sizeof(float));
            break;
        case CacheType::bf16:
            store_halves(x, head_dim, halves, [](F32 v, uint16_t* to) { v.store_bf16(to); });
            break;
        case CacheType::f16:
            store_halves(x, head_dim, halves, [](F32 v, uint16_t* to) { v.store_f16(to); });
            break;
        case CacheType::int8:
            store_codes(x, head_dim, reinterpret_cast<int8_t*>(cache.data) + row * head_dim, cache.scales + row);
            break;
        case CacheType::bf16_pairs: break;  // has no rows
    }
}

inline void store(const CacheLayer& cache, const Heads& heads, int64_t slot, const float* k, const float* v) {
    for (int64_t head = 0; head < heads.kv_heads; ++head, k += heads.head_dim, v += heads.head_dim) {
        if (cache.type == CacheType::bf16_pairs) {
            store_pairs(cache, heads, head, slot, k, v);
            continue;
        }
        store_row(cache, head * cache.slots + slot, heads.head_dim, k);
        store_row(cache, (heads.kv_heads + head) * cache.slots + slot, heads.head_dim, v);
    }
}

}  // namespace corral::CORRAL_NAMESPACE
