// What is read off a row of logits.
#pragma once
#include "../kernels.h"
#include "../simd/simd.h"

namespace corral::CORRAL_NAMESPACE {

// NaN counts as the largest number, as in torch.
inline void argmax(const float* x, int64_t count, float* value, int64_t* index) {
    const int64_t whole = count / 16 * 16;
    F32 most = F32::broadcast(-__builtin_inff());
    bool nan = false;
    for (int64_t i = 0; i < whole; i += 16) {
        const F32 v = F32::load(x + i);
        nan |= v.any_nan();
        most = max(v, most);
    }
    float largest = most.reduce_max();
    for (int64_t i = whole; i < count; ++i) {
        nan |= x[i] != x[i];
        largest = x[i] > largest ? x[i] : largest;
    }
    int64_t at = 0;
    if (nan) {
        while (x[at] == x[at]) ++at;
    } else {
        while (at < whole && F32::load(x + at).find(largest) < 0) at += 16;
        at += at < whole ? F32::load(x + at).find(largest) : 0;
        while (at < count && x[at] != largest) ++at;
    }
    *value = x[at];
    *index = at;
}

inline void column_maxima(const float* x, int64_t rows, int64_t columns, float* out) {
    for (int64_t j = 0; j < columns; j += kLanes) {
        F32 most = F32::load(x + j);
        for (int64_t row = 1; row < rows; ++row) most = max(most, F32::load(x + row * columns + j));
        most.store(out + j);
    }
}

inline int64_t find_from(const float* x, int64_t count, float bound, int32_t* places, int64_t room) {
    int64_t found = 0;
    for (int64_t i = 0; i < count; i += kLanes) {
        const int lanes = static_cast<int>(count - i < kLanes ? count - i : kLanes);
        unsigned mask = lanes == kLanes ? F32::load(x + i).from(bound) : F32::load_part(x + i, lanes).from(bound);
        mask &= (1u << lanes) - 1;
        for (; mask != 0; mask &= mask - 1, ++found)
            if (found < room) places[found] = static_cast<int32_t>(i + __builtin_ctz(mask));
    }
    return found;
}

// Sums of 32 vectors go into a double: rounding counts for 32 additions, not for all of a row.
inline double exp_sum(const float* x, int64_t count, float best, float factor) {
    constexpr int64_t kPiece = 32 * kLanes;
    double sum = 0;
    for (int64_t first = 0; first < count; first += kPiece) {
        const int64_t end = count - first < kPiece ? count : first + kPiece;
        F32 part = F32::zero();
        int64_t i = first;
        for (; i + kLanes <= end; i += kLanes)
            part = part + exp((F32::load(x + i) - F32::broadcast(best)) * F32::broadcast(factor));
        if (i < end) {
            float rest[kLanes];
            exp((F32::load_part(x + i, static_cast<int>(end - i)) - F32::broadcast(best)) * F32::broadcast(factor)).store(rest);
            part = part + F32::load_part(rest, static_cast<int>(end - i));
        }
        sum += part.reduce_add();
    }
    return sum;
}

}  // namespace corral::CORRAL_NAMESPACE
