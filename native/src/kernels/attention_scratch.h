// The memory that attention works in.
#pragma once
#include <type_traits>

#include "attention_tiles.h"

namespace corral::CORRAL_NAMESPACE {

constexpr int64_t kChunk = 256;  // rows, times heads of the group, that go through the tiles together
constexpr int64_t kBlock = 30;   // of those, how many are taken from scores to values while all stays in the first cache

inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

struct Shape {
    int64_t group, head_dim, padded;
    int64_t chunk, block;  // in rows of the span

    explicit Shape(const Heads& heads)
        : group(heads.q_heads / heads.kv_heads),
          head_dim(heads.head_dim),
          padded((head_dim + 2 * kLanes - 1) / (2 * kLanes) * (2 * kLanes)),
          chunk(at_least(1, kChunk / group)),
          block(at_least(1, kBlock / group)) {}
};

// What a thread works with. Sizes in words; whatever the kind of words, there is room for floats.
struct Scratch {
    uint32_t *q, *keys, *values, *row, *half, *probabilities;
    float *scores, *out, *sums, *maxima, *maximum, *correction, *key_scale, *value_scale;
    uint8_t* zeros;
    size_t bytes = 0;

    Scratch(const Shape& s, uint8_t* base) {
        const auto take = [&](auto*& part, int64_t words) {
            part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(base + bytes);
            bytes += (words * sizeof(uint32_t) + 63) / 64 * 64;
        };
        const int64_t chunk = s.chunk * s.group, block = s.block * s.group;
        take(q, chunk * s.padded);
        take(out, chunk * s.padded);
        take(sums, chunk * kLanes);
        take(maxima, chunk + kLanes);
        take(maximum, block + kLanes);
        take(correction, block + kLanes);
        take(keys, kTile * s.padded);
        take(values, kTile * s.padded);
        take(row, kLanes * s.padded);
        take(half, s.padded);
        take(scores, block * kTile);
        take(probabilities, block * kTile);
        take(key_scale, kTile);
        take(value_scale, kTile);
        take(zeros, s.padded);
    }
};

}  // namespace corral::CORRAL_NAMESPACE
