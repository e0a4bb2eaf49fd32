// The products of linear layers: y = x w^T forward, x' = y' w and w' = y'^T x backward.
//
// The right factor is packed as it is needed, a panel of 64 columns at a time: with hundreds of rows to meet, that is nearly
// free. The left factor is read row by row where it lies; where its rows are the columns of a tensor, or words have to be made
// of its elements first, it is copied once.
#pragma once
#include "elements.h"

namespace corral::CORRAL_NAMESPACE {

template <class Elements>
class LinearProduct {
    using P = Packing<Elements>;
    using Words = typename P::Words;
    using Element = typename Elements::Element;
    static constexpr int64_t kChunk = 1024;  // words of the sums, at a time: a panel stays in the second cache
    static constexpr int64_t kAhead = 16;    // rows of the right factor that are asked for
    static constexpr int64_t kGroup = 40;    // rows whose sums stay in the first

public:
    explicit LinearProduct(const corral_product& call)
        : call_(call), words_(P::words(call.steps)),
          in_place_(!call.left_turned && call.steps % P::kPerWord == 0 && P::in_place(call.left, call.left_stride)),
          left_stride_(in_place_ ? call.left_stride / P::kPerWord : rounded_up(words_, kLanes)) {}

    size_t left_bytes(int64_t rows) const {
        return in_place_ ? 0 : rounded_up(rows, kLanes) * left_stride_ * sizeof(uint32_t);
    }

    void prepare(int64_t row, int64_t row_end, uint32_t* left) const {
        const Element* from = static_cast<const Element*>(call_.left);
        if (call_.left_turned) {
            for (int64_t word = 0; word < words_; word += kLanes) {
                const int64_t first = word * P::kPerWord;
                P::turn_joined(from + first * call_.left_stride + row, call_.left_stride, call_.steps - first, row_end - row,
                               left + word, left_stride_);
            }
            return;
        }
        for (; row < row_end; ++row, left += left_stride_)
            P::row(from + row * call_.left_stride, call_.steps, left_stride_, left);
    }

    size_t scratch_bytes(int64_t rows) const {
        const int64_t panel = rounded_up(fewer(words_, kChunk), kLanes) * kProductColumns;
        return (panel + (words_ <= kChunk ? kGroup : rows) * kProductColumns) * sizeof(uint32_t);
    }

    void run(const uint32_t* left, int64_t row, int64_t row_end, int64_t column, int64_t column_end, void* scratch) const {
        if (in_place_) left = static_cast<const uint32_t*>(call_.left) + row * left_stride_;
        uint32_t* panel = static_cast<uint32_t*>(scratch);
        float* sums = static_cast<float*>(scratch) + rounded_up(fewer(words_, kChunk), kLanes) * kProductColumns;
        const int64_t group = words_ <= kChunk ? kGroup : row_end - row;
        for (int64_t first = 0; first < words_; first += kChunk) {
            const int64_t end = fewer(first + kChunk, words_);
            pack(first, end, column, column_end, panel);
            for (int64_t at = row; at < row_end; at += group) {
                const int64_t stop = fewer(at + group, row_end);
                if (end == words_) ask_rows(at, stop, column, column_end);
                multiply_words<Words>(left + (at - row) * left_stride_ + first, left_stride_, panel, kProductColumns, end - first,
                                      first > 0, stop - at, column_end - column, sums, kProductColumns);
                if (end == words_) write(sums, at, stop, column, column_end);
            }
        }
    }

private:
    void pack(int64_t first, int64_t end, int64_t column, int64_t column_end, uint32_t* panel) const {
        const Element* from = static_cast<const Element*>(call_.right);
        const int64_t stride = call_.right_stride, step = first * P::kPerWord;
        const int64_t steps = fewer(call_.steps, end * P::kPerWord) - step;
        if (call_.right_turned) {
            for (int64_t i = column; i < column_end; i += kLanes)
                P::turn(from + i * stride + step, stride, fewer(kLanes, column_end - i), steps, panel + (i - column),
                        kProductColumns);
            return;
        }
        const int64_t columns = column_end - column;
        for (int64_t word = 0; word < end - first; ++word) {
            const Element* line = from + (step + word * P::kPerWord) * stride + column;
            for (int64_t i = 0; i < P::kPerWord; ++i) ask(line + (kAhead + i) * stride, columns);
            P::join(line, stride, steps - word * P::kPerWord, columns, rounded_up(columns, 2 * kLanes),
                    panel + word * kProductColumns);
        }
    }

    // The processor follows few streams by itself.
    static void ask(const Element* line, int64_t count) {
        for (int64_t i = 0; i < count; i += 64 / sizeof(Element)) __builtin_prefetch(line + i, 0, 2);
    }

    // Where sums go, early enough.
    void ask_rows(int64_t row, int64_t row_end, int64_t column, int64_t column_end) const {
        for (; row < row_end; ++row) {
            const Element* out = static_cast<const Element*>(call_.out) + row * call_.out_stride + column;
            for (int64_t i = 0; i < column_end - column; i += 64 / sizeof(Element)) __builtin_prefetch(out + i, 1, 2);
        }
    }

    void write(const float* sums, int64_t row, int64_t row_end, int64_t column, int64_t column_end) const {
        for (; row < row_end; ++row, sums += kProductColumns) {
            Element* out = static_cast<Element*>(call_.out) + row * call_.out_stride + column;
            each_part(0, column_end - column, [&](int64_t i, int lanes) {
                F32 sum = F32::load(sums + i);
                if (call_.add) sum = sum + Elements::load_part(out + i, lanes);
                Elements::store_part(sum, out + i, lanes);
            });
        }
    }

    const corral_product& call_;
    const int64_t words_;
    const bool in_place_;
    const int64_t left_stride_;
};

}  // namespace corral::CORRAL_NAMESPACE
