// Products of 8-bit and 4-bit weights with int8 activations. For an activation group (32 columns, or 16), exactly
//
//     sum = (codes - zero) . x.codes          in integers; -zero * x.sums[group] is where the sum begins
//     acc = fma(float(sum), scale * x.scale, acc)
//     acc = fma(offset, float(x.sums[group]) * x.scale, acc)          if there are offsets
//
// and groups follow each other from the first column to the last.
#pragma once
#include "tile.h"

namespace corral::CORRAL_NAMESPACE {

inline I32 broadcast_quad(const int8_t* x) {
    int32_t quad;
    __builtin_memcpy(&quad, x, sizeof quad);
    return I32::broadcast(quad);
}

// What `dot` has subtracted from each code already.
template <Codes kind>
constexpr int kSubtracted = kind == Codes::u4 ? 0 : kByteOffset;

template <Codes kind>
inline I32 dot_codes(I32 acc, U8x64 w, I32 x) {
    if constexpr (kind == Codes::u4) return dot_nibbles(acc, w, x);
    else return dot(acc, w, x);
}

// Bytes of 16 columns of a block.
template <Codes kind>
constexpr int64_t kStep = kind == Codes::u8 ? 256 : 128;

// The codes of 16 columns as four vectors, each four columns of 16 rows.
template <Codes kind>
[[gnu::always_inline]] inline void unpack16(const uint8_t* codes, const Levels& levels, U8x64 (&w)[4]) {
    if constexpr (kind == Codes::u8) {
        for (int i = 0; i < 4; ++i) w[i] = U8x64::load(codes + 64 * i);
    } else {
        for (int i = 0; i < 2; ++i) {
            const U8x64 packed = U8x64::load(codes + 64 * i);
            w[2 * i] = packed.low_nibbles();
            w[2 * i + 1] = packed.high_nibbles();
        }
        if constexpr (kind == Codes::lut4)
            for (U8x64& bytes : w) bytes = bytes.lookup(levels);
    }
}

// ---- few rows: the weights stream from memory once, and are unpacked once for all rows

// One block after the other, each from its first byte to its last: the hardware asks for memory ahead of a stream, and
// starts anew where a stream leaves out 512 bytes. So the scales, which lie before the codes, are all touched first.
inline void touch(const uint8_t* begin, const uint8_t* end) {
    for (; begin < end; begin += 64) static_cast<void>(*static_cast<const volatile uint8_t*>(begin));
}

template <Codes kind, int steps, int rows>
void few_rows(const Matmul& m, int64_t row, int64_t block) {
    const Matrix& w = *m.matrix;
    constexpr int64_t unit = 16 * steps, unit_bytes = steps * kStep<kind>;
    const int64_t columns = w.padded_columns, units = columns / unit, units_of_group = w.group / unit;
    const int32_t minus_zero = kSubtracted<kind> - w.zero;
    const bool half = w.scales == Scales::f16, with_offsets = w.has_offsets;
    const int64_t scale_bytes = kLanes * (half ? 2 : 4), offsets_from_scales = w.offsets_at - w.scales_at;
    const Levels levels(w.levels);
    const uint8_t* codes = w.data + block * w.block_bytes;
    const uint8_t* const codes_end = codes + units * unit_bytes;
    const uint8_t* scales = codes + w.scales_at;
    const int8_t* x = m.x.codes + row * columns;
    const float* x_scales = m.x.scales + row * units;
    const int32_t* x_sums = m.x.sums + row * units;

    touch(scales, codes);
    F32 acc[rows], scale = F32::zero(), offset = F32::zero();
    for (F32& a : acc) a = F32::zero();
    int64_t units_left = 1;  // of a group; a new one begins at 0
    for (; codes != codes_end; codes += unit_bytes) {
        if (--units_left == 0) {
            scale = load_scale(half, scales);
            if (with_offsets) offset = load_scale(half, scales + offsets_from_scales);
            scales += scale_bytes;
            units_left = units_of_group;
        }
        I32 sum[rows];
        for (int r = 0; r < rows; ++r) sum[r] = I32::broadcast(minus_zero * x_sums[r * units]);
        for (int s = 0; s < steps; ++s) {
            U8x64 bytes[4];
            unpack16<kind>(codes + s * kStep<kind>, levels, bytes);
            if constexpr (rows > 4)  // fewer rows leave the hardware the time to be ahead by itself
                for (int64_t i = 0; i < kStep<kind>; i += 64) prefetch(codes + kStreamAhead + s * kStep<kind> + i);
            for (int i = 0; i < 4; ++i)
                for (int r = 0; r < rows; ++r)
                    sum[r] = dot_codes<kind>(sum[r], bytes[i], broadcast_quad(x + r * columns + 16 * s + 4 * i));
        }
        for (int r = 0; r < rows; ++r) {
            const F32 x_scale = F32::broadcast(x_scales[r * units]);
            acc[r] = fma(F32::from(sum[r]), scale * x_scale, acc[r]);
            if (!with_offsets) continue;
            const F32 x_sum = F32::broadcast(static_cast<float>(x_sums[r * units])) * x_scale;
            acc[r] = fma(offset, x_sum, acc[r]);
        }
        x += unit, ++x_scales, ++x_sums;
    }
    for (int r = 0; r < rows; ++r) finish(m, row + r, block, acc[r]);
}

template <Codes kind, int steps, int rows>
void few_rows(const Matmul& m, int64_t row, int64_t block, int64_t block_end) {
    for (; block < block_end; ++block) few_rows<kind, steps, rows>(m, row, block);
}

template <Codes kind, int steps, int most = kFewRows>
void few_rows_of(const Matmul& m, int64_t row, int64_t rows, int64_t block, int64_t block_end) {
    if (rows == most) return few_rows<kind, steps, most>(m, row, block, block_end);
    if constexpr (most > 1) few_rows_of<kind, steps, most - 1>(m, row, rows, block, block_end);
}

// ---- many rows: a panel of blocks x columns is unpacked to bytes, and tiles of rows pass by

struct CodePanel {
    const uint8_t* codes[kCodeTileBlocks];  // [columns / 4][16][4] of a block
    uint8_t* unpacked;                      // room for as much of every block
    float* scales;                          // [units][blocks][16]
    float* offsets;
};

constexpr int64_t kCodeColumns = 384;  // of a panel
constexpr int64_t kCodeBlockBytes = kCodeColumns * kLanes;
constexpr int64_t kCodeScales = kCodeColumns / 16 * kCodeTileBlocks * kLanes;

inline void unpack_scales(const Matrix& w, const Stretch& at, int blocks, const uint8_t* scales, float* to) {
    const int64_t unit = w.activation_group();
    const bool half = w.scales == Scales::f16;
    const int64_t scale_bytes = kLanes * (half ? 2 : 4);
    for (int64_t k = at.begin; k < at.end; k += unit)
        for (int b = 0; b < blocks; ++b, to += kLanes)
            load_scale(half, scales + b * w.block_bytes + k / w.group * scale_bytes).store(to);
}

template <Codes kind>
void fill_panel(const Matrix& w, const Stretch& at, int blocks, CodePanel& panel) {
    const Levels levels(w.levels);
    const uint8_t* data = w.data + at.block * w.block_bytes;
    for (int b = 0; b < blocks; ++b) {
        const uint8_t* from = data + b * w.block_bytes + at.begin / 16 * kStep<kind>;
        uint8_t* to = panel.unpacked + b * kCodeBlockBytes;
        panel.codes[b] = kind == Codes::u8 ? from : to;
        if constexpr (kind != Codes::u8)
            for (int64_t k = at.begin; k < at.end; k += 16, from += kStep<kind>, to += 256) {
                U8x64 bytes[4];
                unpack16<kind>(from, levels, bytes);
                for (int i = 0; i < 4; ++i) bytes[i].store(to + 64 * i);
            }
    }
    unpack_scales(w, at, blocks, data + w.scales_at, panel.scales);
    if (w.has_offsets) unpack_scales(w, at, blocks, data + w.offsets_at, panel.offsets);
}

template <Codes kind, bool with_offsets, int rows, int blocks>
void code_tile(const Matmul& m, const Stretch& at, const CodePanel& panel) {
    const Matrix& w = *m.matrix;
    const int64_t columns = w.padded_columns, unit = w.activation_group(), units = columns / unit;
    const int32_t minus_zero = kSubtracted<kind> - w.zero;
    const int8_t* x = m.x.codes + at.row * columns + at.begin;
    const float* x_scales = m.x.scales + at.row * units;
    const int32_t* x_sums = m.x.sums + at.row * units;
    const float* scales = panel.scales;
    const float* offsets = panel.offsets;

    F32 acc[rows][blocks];
    begin_tile(at, acc);
    int64_t code = 0;
    for (int64_t u = at.begin / unit; u < at.end / unit; ++u) {
        I32 sum[rows][blocks];
        for (int r = 0; r < rows; ++r) {
            const I32 first = I32::broadcast(minus_zero * x_sums[r * units + u]);
            for (int b = 0; b < blocks; ++b) sum[r][b] = first;
            prefetch(x + (rows + r) * columns);
        }
        for (int64_t k = 0; k < unit; k += 4, code += 64) {
            U8x64 bytes[blocks];
            for (int b = 0; b < blocks; ++b) bytes[b] = U8x64::load(panel.codes[b] + code);
            for (int r = 0; r < rows; ++r) {
                const I32 quad = broadcast_quad(x + r * columns + k);
                for (int b = 0; b < blocks; ++b) sum[r][b] = dot_codes<kind>(sum[r][b], bytes[b], quad);
            }
        }
        x += unit;
        for (int r = 0; r < rows; ++r) {
            const F32 x_scale = F32::broadcast(x_scales[r * units + u]);
            const F32 x_sum = F32::broadcast(static_cast<float>(x_sums[r * units + u])) * x_scale;
            for (int b = 0; b < blocks; ++b) {
                acc[r][b] = fma(F32::from(sum[r][b]), F32::load(scales + b * kLanes) * x_scale, acc[r][b]);
                if constexpr (with_offsets) acc[r][b] = fma(F32::load(offsets + b * kLanes), x_sum, acc[r][b]);
            }
        }
        scales += blocks * kLanes;
        offsets += blocks * kLanes;
    }
    end_tile(m, at, acc);
}

template <Codes kind, bool with_offsets, int blocks>
void pass_rows(const Matmul& m, Stretch at, int64_t row_end, const CodePanel& panel) {
    while (at.row < row_end) {
        const int64_t left = row_end - at.row;
        const int64_t rows = left >= kCodeTileRows ? kCodeTileRows : left >= 2 ? 2 : 1;
        if (rows == kCodeTileRows) code_tile<kind, with_offsets, kCodeTileRows, blocks>(m, at, panel);
        else if (rows == 2) code_tile<kind, with_offsets, 2, blocks>(m, at, panel);
        else code_tile<kind, with_offsets, 1, blocks>(m, at, panel);
        at.row += rows;
        at.waiting += rows * blocks * kLanes;
    }
}

template <Codes kind, int blocks>
void multiply_panel(const Matmul& m, Stretch at, int64_t row_end, CodePanel panel) {
    constexpr Codes bytes = kByteOffset == 0 || kind == Codes::lut4 ? Codes::u8 : kind;  // how they lie in the panel
    const Matrix& w = *m.matrix;
    const int64_t columns = w.padded_columns;
    for (at.begin = 0; at.begin < columns; at.begin = at.end) {
        at.end = least(at.begin + kCodeColumns, columns);
        fill_panel<kind>(w, at, blocks, panel);
        if (w.has_offsets) pass_rows<bytes, true, blocks>(m, at, row_end, panel);
        else pass_rows<bytes, false, blocks>(m, at, row_end, panel);
    }
}

constexpr size_t codes_scratch() {
    return kCodeTileBlocks * kCodeBlockBytes + 2 * kCodeScales * sizeof(float) +
           kRowChunk * kCodeTileBlocks * kLanes * sizeof(float);
}

template <Codes kind>
void matmul_codes(const Matmul& m, int64_t row, int64_t row_end, int64_t block, int64_t block_end, void* scratch) {
    if (row_end - row <= kFewRows) {
        if (m.matrix->activation_group() == 32) return few_rows_of<kind, 2>(m, row, row_end - row, block, block_end);
        return few_rows_of<kind, 1>(m, row, row_end - row, block, block_end);
    }
    CodePanel panel{};
    panel.unpacked = static_cast<uint8_t*>(scratch);
    panel.scales = reinterpret_cast<float*>(panel.unpacked + kCodeTileBlocks * kCodeBlockBytes);
    panel.offsets = panel.scales + kCodeScales;
    for (; row < row_end; row += kRowChunk) {
        const int64_t end = least(row + kRowChunk, row_end);
        Stretch at{row, block, 0, 0, panel.offsets + kCodeScales};
        while (at.block < block_end) {
            const int64_t blocks = least(kCodeTileBlocks, block_end - at.block);
            if (blocks == kCodeTileBlocks) multiply_panel<kind, kCodeTileBlocks>(m, at, end, panel);
            else if (blocks == 2) multiply_panel<kind, 2 < kCodeTileBlocks ? 2 : 1>(m, at, end, panel);
            else multiply_panel<kind, 1>(m, at, end, panel);
            at.block += blocks;
        }
    }
}

}  // namespace corral::CORRAL_NAMESPACE
