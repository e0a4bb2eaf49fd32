// What the matrix products share: blocks of weights, chunks of columns, and the end of a sum.
//
// All of them sum along the columns in one order, whatever the number of rows. Accumulators that wait in memory while
// other rows have their turn with a chunk of columns lose nothing.
#pragma once
#include "../kernels.h"
#include "../simd/simd.h"

namespace corral::CORRAL_NAMESPACE {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr int64_t kRowChunk = 256;        // rows whose accumulators wait
constexpr int64_t kPanelBytes = 24 << 10;  // weights of a chunk of columns: they stay in the L1 cache while rows pass by
constexpr int64_t kStreamAhead = 4096;     // bytes, of weights that pass through registers only

// Asks for memory ahead of a stream.
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

inline F32 load_scale(bool half, const uint8_t* p) {
    return half ? F32::load_f16(reinterpret_cast<const uint16_t*>(p)) : F32::load(reinterpret_cast<const float*>(p));
}

// out = acc (+ bias) (+ out), in this order.
inline void finish(const Matmul& m, int64_t row, int64_t block, F32 acc) {
    const int64_t first = block * kLanes;
    const int lanes = static_cast<int>(least(kLanes, m.matrix->rows - first));
    float* out = m.out + row * m.out_stride + first;
    if (lanes == kLanes) {
        if (m.bias) acc = acc + F32::load(m.bias + first);
        if (m.add) acc = acc + F32::load(out);
        acc.store(out);
    } else {
        if (m.bias) acc = acc + F32::load_part(m.bias + first, lanes);
        if (m.add) acc = acc + F32::load_part(out, lanes);
        acc.store_part(out, lanes);
    }
}

// A tile of rows x blocks, over the columns [begin, end) of a sum that goes over all columns of the matrix.
struct Stretch {
    int64_t row, block;
    int64_t begin, end;
    float* waiting;  // [rows][blocks][16]: accumulators between two chunks
};

template <int rows, int blocks>
inline void begin_tile(const Stretch& at, F32 (&acc)[rows][blocks]) {
    for (int r = 0; r < rows; ++r)
        for (int b = 0; b < blocks; ++b)
            acc[r][b] = at.begin == 0 ? F32::zero() : F32::load(at.waiting + (r * blocks + b) * kLanes);
}

template <int rows, int blocks>
inline void end_tile(const Matmul& m, const Stretch& at, const F32 (&acc)[rows][blocks]) {
    const bool last = at.end == m.matrix->padded_columns;
    for (int r = 0; r < rows; ++r)
        for (int b = 0; b < blocks; ++b) {
            if (last) finish(m, at.row + r, at.block + b, acc[r][b]);
            else acc[r][b].store(at.waiting + (r * blocks + b) * kLanes);
        }
}

}  // namespace corral::CORRAL_NAMESPACE
