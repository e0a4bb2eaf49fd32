// Products in floating point. f32 and bf16 weights: one accumulator, from the first column to the last. The exact mode of
// 8-bit and 4-bit weights: the whole numbers code - zero lie within -255 .. 255, which bfloat16 holds exactly; for an
// activation group (32 columns, or 16)
//
//     sum = (codes - zero) . x.bf16          one accumulator, from zero
//     acc = fma(sum, scale, acc)
//     acc = fma(offset, 1 . x.bf16, acc)     if there are offsets
#pragma once
#include "matmul_codes.h"
#include "tile.h"

namespace corral::CORRAL_NAMESPACE {

// How weights and activations of a type meet: so many columns at a time.
struct Float {
    using Element = float;
    static constexpr int columns = 1;
    F32 v;
    static Float load(const float* p) { return {F32::load(p)}; }
    static Float broadcast(const float* p) { return {F32::broadcast(*p)}; }
    static const float* rows(const Activations& x) { return x.f32; }
};
inline F32 dot(F32 acc, Float w, Float x) { return fma(w.v, x.v, acc); }

struct Bf16 : Bf16Pairs {
    using Element = uint16_t;
    static constexpr int columns = 2;
    static Bf16 load(const uint16_t* p) { return {Bf16Pairs::load(p)}; }
    static Bf16 broadcast(const uint16_t* p) { return {Bf16Pairs::broadcast(p)}; }
    static const uint16_t* rows(const Activations& x) { return x.bf16; }
};

// Adds the columns [0, count) of w[block][count / columns][16][columns] to the tile.
template <class Type, bool stream = false, int rows, int blocks>
inline void add_columns(const typename Type::Element* const (&w)[blocks], const typename Type::Element* x, int64_t stride,
                        int64_t count, F32 (&acc)[rows][blocks]) {
    for (int64_t k = 0; k < count; k += Type::columns) {
        Type weights[blocks];
        for (int b = 0; b < blocks; ++b) {
            weights[b] = Type::load(w[b] + k * kLanes);
            if constexpr (stream) prefetch(reinterpret_cast<const uint8_t*>(w[b] + k * kLanes) + kStreamAhead);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
            const Type value = Type::broadcast(x + r * stride + k);
#pragma GCC unroll 8
            for (int b = 0; b < blocks; ++b) acc[r][b] = dot(acc[r][b], weights[b], value);
        }
    }
}

// A matrix as it lies in memory.
template <class Type>
struct PlainPanel {
    template <int rows, int blocks, bool stream = false>
    static void tile(const Matmul& m, const Stretch& at, const void*) {
        using Element = typename Type::Element;
        const Matrix& matrix = *m.matrix;
        const int64_t stride = matrix.padded_columns;
        const Element* w[blocks];
        for (int b = 0; b < blocks; ++b)
            w[b] = reinterpret_cast<const Element*>(matrix.data + (at.block + b) * matrix.block_bytes) + at.begin * kLanes;
        F32 acc[rows][blocks];
        begin_tile(at, acc);
        add_columns<Type, stream>(w, Type::rows(m.x) + at.row * stride + at.begin, stride, at.end - at.begin, acc);
        end_tile(m, at, acc);
    }
    static void fill(const Matrix&, const Stretch&, int, void*) {}
    static constexpr int64_t columns = kPanelBytes / (kFloatTileBlocks * kLanes * sizeof(typename Type::Element)) / 32 * 32;
    static constexpr size_t bytes = 0;
};

// Codes minus zero as pairs of bfloat16.
struct ExactPanel {
    static constexpr int64_t columns = PlainPanel<Bf16>::columns;
    static constexpr int64_t block_elements = columns * kLanes;
    static constexpr size_t scale_floats = columns / 16 * kFloatTileBlocks * kLanes;
    static constexpr size_t bytes = kFloatTileBlocks * block_elements * sizeof(uint16_t) + 2 * scale_floats * sizeof(float);

    static float* scales(const void* panel) {
        return reinterpret_cast<float*>(static_cast<uint16_t*>(const_cast<void*>(panel)) + kFloatTileBlocks * block_elements);
    }

    // Four columns of a lane, bytes 0 .. 3, become two pairs. A small whole number's bfloat16 is the upper half of its float.
    static void widen(U8x64 bytes, F32 zero, uint16_t* to) {
        const I32 quads = bytes.words(), byte = I32::broadcast(255);
        const I32 c0 = I32::bits(F32::from(quads & byte) - zero);
        const I32 c1 = I32::bits(F32::from(shift_right<8>(quads) & byte) - zero);
        const I32 c2 = I32::bits(F32::from(shift_right<16>(quads) & byte) - zero);
        const I32 c3 = I32::bits(F32::from(shift_right<24>(quads)) - zero);
        int32_t* pairs = reinterpret_cast<int32_t*>(to);
        (shift_right<16>(c0) | c1).store(pairs);
        (shift_right<16>(c2) | c3).store(pairs + kLanes);
    }

    template <Codes kind>
    static void fill_codes(const Matrix& w, const Stretch& at, int blocks, uint16_t* panel) {
        const Levels levels(w.levels);
        const F32 zero = F32::broadcast(static_cast<float>(w.zero));
        for (int b = 0; b < blocks; ++b) {
            const uint8_t* from = w.data + (at.block + b) * w.block_bytes + at.begin / 16 * kStep<kind>;
            uint16_t* to = panel + b * block_elements;
            for (int64_t k = at.begin; k < at.end; k += 16, from += kStep<kind>) {
                U8x64 quads[4];
                unpack16<kind>(from, levels, quads);
                for (int i = 0; i < 4; ++i, to += 4 * kLanes) widen(quads[i], zero, to);
            }
        }
    }

    static void fill(const Matrix& w, const Stretch& at, int blocks, void* panel) {
        uint16_t* codes = static_cast<uint16_t*>(panel);
        if (w.codes == Codes::u8) fill_codes<Codes::u8>(w, at, blocks, codes);
        else if (w.codes == Codes::u4) fill_codes<Codes::u4>(w, at, blocks, codes);
        else fill_codes<Codes::lut4>(w, at, blocks, codes);
        const uint8_t* data = w.data + at.block * w.block_bytes;
        unpack_scales(w, at, blocks, data + w.scales_at, scales(panel));
        if (w.has_offsets) unpack_scales(w, at, blocks, data + w.offsets_at, scales(panel) + scale_floats);
    }

    template <int rows>
    static void add_row_sums(const uint16_t* x, int64_t stride, int64_t unit, F32 (&sums)[rows]) {
        const uint16_t ones[2 * kLanes] = {0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80,
                                           0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80,
                                           0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80,
                                           0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x3f80};
        const Bf16 one = Bf16::load(ones);
        for (int r = 0; r < rows; ++r) {
            sums[r] = F32::zero();
            for (int64_t k = 0; k < unit; k += 2) sums[r] = dot(sums[r], one, Bf16::broadcast(x + r * stride + k));
        }
    }

    template <int rows, int blocks>
    static void tile(const Matmul& m, const Stretch& at, const void* panel) {
        const Matrix& matrix = *m.matrix;
        const int64_t stride = matrix.padded_columns, unit = matrix.activation_group();
        const float* scale = scales(panel);
        const uint16_t* x = m.x.bf16 + at.row * stride + at.begin;
        const uint16_t* w[blocks];
        for (int b = 0; b < blocks; ++b) w[b] = static_cast<const uint16_t*>(panel) + b * block_elements;
        F32 acc[rows][blocks];
        begin_tile(at, acc);
        for (int64_t k = at.begin; k < at.end; k += unit, x += unit, scale += blocks * kLanes) {
            F32 sum[rows][blocks];
            for (int r = 0; r < rows; ++r)
                for (int b = 0; b < blocks; ++b) sum[r][b] = F32::zero();
            add_columns<Bf16>(w, x, stride, unit, sum);
            for (int b = 0; b < blocks; ++b) {
                w[b] += unit * kLanes;
                for (int r = 0; r < rows; ++r) acc[r][b] = fma(sum[r][b], F32::load(scale + b * kLanes), acc[r][b]);
            }
            if (!matrix.has_offsets) continue;
            F32 row_sums[rows];
            add_row_sums(x, stride, unit, row_sums);
            for (int b = 0; b < blocks; ++b)
                for (int r = 0; r < rows; ++r)
                    acc[r][b] = fma(F32::load(scale + scale_floats + b * kLanes), row_sums[r], acc[r][b]);
        }
        end_tile(m, at, acc);
    }
};

template <class Panel, int blocks>
void pass_float_rows(const Matmul& m, Stretch at, int64_t row_end, const void* panel) {
    static_assert(kFloatTileRows <= 6, "a case for each number of rows");
    while (at.row < row_end) {
        const int64_t rows = least(kFloatTileRows, row_end - at.row);
        if (rows == kFloatTileRows) Panel::template tile<kFloatTileRows, blocks>(m, at, panel);
        else if (rows == 5) Panel::template tile<kFloatTileRows < 5 ? 1 : 5, blocks>(m, at, panel);
        else if (rows == 4) Panel::template tile<kFloatTileRows < 4 ? 1 : 4, blocks>(m, at, panel);
        else if (rows == 3) Panel::template tile<kFloatTileRows < 3 ? 1 : 3, blocks>(m, at, panel);
        else if (rows == 2) Panel::template tile<2, blocks>(m, at, panel);
        else Panel::template tile<1, blocks>(m, at, panel);
        at.row += rows;
        at.waiting += rows * blocks * kLanes;
    }
}

template <class Panel>
constexpr size_t float_scratch() {
    return Panel::bytes + kRowChunk * kFloatTileBlocks * kLanes * sizeof(float);
}

template <class Panel, int blocks>
void multiply_float_panel(const Matmul& m, Stretch at, int64_t row_end, void* panel) {
    const int64_t columns = m.matrix->padded_columns;
    for (at.begin = 0; at.begin < columns; at.begin = at.end) {
        at.end = least(at.begin + Panel::columns, columns);
        Panel::fill(*m.matrix, at, blocks, panel);
        pass_float_rows<Panel, blocks>(m, at, row_end, panel);
    }
}

template <class Panel>
void matmul_float(const Matmul& m, int64_t row, int64_t row_end, int64_t block, int64_t block_end, void* scratch) {
    float* waiting = reinterpret_cast<float*>(static_cast<uint8_t*>(scratch) + Panel::bytes);
    for (; row < row_end; row += kRowChunk) {
        const int64_t end = least(row + kRowChunk, row_end);
        Stretch at{row, block, 0, 0, waiting};
        while (at.block < block_end) {
            const int64_t left = block_end - at.block;
            const int64_t blocks = left >= kFloatTileBlocks ? kFloatTileBlocks : left >= 2 ? 2 : 1;
            if (blocks == kFloatTileBlocks) multiply_float_panel<Panel, kFloatTileBlocks>(m, at, end, scratch);
            else if (blocks == 2) multiply_float_panel<Panel, 2 < kFloatTileBlocks ? 2 : 1>(m, at, end, scratch);
            else multiply_float_panel<Panel, 1>(m, at, end, scratch);
            at.block += blocks;
        }
    }
}

// Few rows: one block after the other, so that memory is read in the order in which it lies.
template <class Type, int rows>
void few_float_rows(const Matmul& m, int64_t row, int64_t block, int64_t block_end) {
    for (; block < block_end; ++block)
        PlainPanel<Type>::template tile<rows, 1, true>(m, {row, block, 0, m.matrix->padded_columns, nullptr}, nullptr);
}

template <class Type, int most = kFewRows>
void matmul_plain(const Matmul& m, int64_t row, int64_t row_end, int64_t block, int64_t block_end, void* scratch) {
    const int64_t rows = row_end - row;
    if (rows > most) return matmul_float<PlainPanel<Type>>(m, row, row_end, block, block_end, scratch);
    if (rows == most) return few_float_rows<Type, most>(m, row, block, block_end);
    if constexpr (most > 1) matmul_plain<Type, most - 1>(m, row, row_end, block, block_end, scratch);
}

}  // namespace corral::CORRAL_NAMESPACE
