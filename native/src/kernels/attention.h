// Attention of some rows over stretches of positions, and the joining of stretches.
//
// Tiles of 64 positions are taken in order; each row keeps its maximum so far, the sum of its exponentials in 16 lanes, and
// the weighted values, scaled to that maximum (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135).
// Keys that a row must not see are left out of its products, rather than multiplied by zero: a NaN in what follows a position
// cannot reach it.
#pragma once
#include "attention_pairs.h"
#include "attention_rows.h"

namespace corral::CORRAL_NAMESPACE {

#ifdef __AVX512BF16__
using Halves = Bf16Words;
constexpr bool kReadsPairs = true;
#else
using Halves = FloatWords;
constexpr bool kReadsPairs = false;
#endif

template <typename Tiles>
class StretchAttention {
public:
    using Words = typename Tiles::Words;

    StretchAttention(const Attention& call, const AttentionParts& parts, void* scratch)
        : call_(call), parts_(parts), shape_(call.heads), words_(shape_.padded / Words::kPerWord),
          at_(shape_, static_cast<uint8_t*>(scratch)), tiles_(call, parts, shape_, at_) {}

    void run(float* out) {
        const int64_t row_floats = shape_.group * (shape_.head_dim + 2);
        end_ = at_most(parts_.stretch_end * kStretch, parts_.span->start + parts_.first + parts_.count);
        for (int64_t stretch = parts_.stretch; stretch < parts_.stretch_end; ++stretch, out += parts_.count * row_floats)
            for (int64_t first = 0; first < parts_.count; first += shape_.chunk) {
                const int64_t count = at_most(shape_.chunk, parts_.count - first);
                run_chunk(stretch, first, count);
                write(count * shape_.group, out + first * row_floats);
            }
    }

private:
    static constexpr int64_t kGroupSteps = kLanes / Words::kPerWord;  // of values, in a group

    void run_chunk(int64_t stretch, int64_t first, int64_t count) {
        const int64_t rows = count * shape_.group;
        for (int64_t row = 0; row < count; ++row) load_queries(first + row, at_.q + row * shape_.group * words_);
        std::memset(at_.out, 0, rows * shape_.padded * sizeof(float));
        std::memset(at_.sums, 0, rows * kLanes * sizeof(float));
        for (int64_t i = 0; i < rows; ++i) at_.maxima[i] = -__builtin_inff();

        position_ = parts_.span->start + parts_.first + first;  // of the chunk's first row
        const int64_t begin = stretch * kStretch;
        const int64_t end = at_most(begin + kStretch, position_ + count);
        for (int64_t tile = begin; tile < end; tile += kTile) {
            tiles_.take(tile, end, end_);
            for (int64_t row = 0; row < count; row += shape_.block)
                attend(tile, row, at_most(row + shape_.block, count));
        }
    }

    void load_queries(int64_t row, uint32_t* to) const {
        const float* q = call_.q + (parts_.span->first_row + parts_.first + row) * call_.q_stride +
                         parts_.kv_head * shape_.group * shape_.head_dim;
        for (int64_t head = 0; head < shape_.group; ++head)
            convert<Words, CacheType::f32>(reinterpret_cast<const uint8_t*>(q + head * shape_.head_dim), shape_.head_dim,
                                           shape_.padded, to + head * words_);
    }

    // How many positions of a tile a row of the chunk sees.
    int64_t visible(int64_t tile, int64_t row) const {
        return at_least(0, at_most(kTile, position_ + row + 1 - tile));
    }

    // The end of the groups that follow group `first` in memory, each after `words`.
    static int64_t follow(const uint32_t* const (&groups)[kGroups], int64_t first, int64_t words) {
        int64_t end = first + 1;
        while (end < kGroups && groups[end] == groups[end - 1] + words) ++end;
        return end;
    }

    // Rows [begin, end) of the chunk, which fit into a block, over the tile.
    void attend(int64_t tile, int64_t begin, int64_t end) {
        while (begin < end && visible(tile, begin) == 0) ++begin;
        if (begin == end) return;
        const int64_t group = shape_.group, rows = (end - begin) * group;
        const int64_t columns = (visible(tile, end - 1) + kLanes - 1) / kLanes;
        const uint32_t* q = at_.q + begin * group * words_;
        for (int64_t first = 0; first < columns;) {
            const int64_t last = at_most(columns, follow(tiles_.keys, first, tiles_.key_group()));
            multiply<Words>({q, words_, tiles_.keys[first], tiles_.key_step(), tiles_.key_group(), at_.scores + first * kLanes,
                             kTile, words_, false, tiles_.after_keys(first), (last - first) * kLanes},
                            rows, last - first);
            first = last;
        }

        tiles_.fetch();
        for (int64_t i = 0; i < rows; ++i) find_maximum(begin * group + i, i, visible(tile, begin + i / group));
        tiles_.fetch();
        correct(begin * group, rows);
        for (int64_t i = 0; i < rows; ++i) exponentiate(begin * group + i, i, visible(tile, begin + i / group));

        tiles_.fetch();
        int64_t row = begin;
        for (; row < end && visible(tile, row) < kTile; ++row) {}
        // Positions rise with the rows, so those that see the whole tile are the last ones.
        for (int64_t i = begin; i < row; ++i) add_values(i, i - begin, 1, visible(tile, i));
        if (row < end) add_values(row, row - begin, end - row, kTile);
    }

    // Scales the scores of row i of the block, and hides what it does not see in the last vector.
    void find_maximum(int64_t row, int64_t i, int64_t count) {
        float* scores = at_.scores + i * kTile;
        F32 most = F32::broadcast(-__builtin_inff());
        for (int64_t k = 0; k < count; k += kLanes) {
            const F32 scaled = F32::load(scores + k) * F32::load(tiles_.key_scale() + k);
            scaled.store(scores + k);
            if (k + kLanes > count)
                for (int64_t hidden = count; hidden < k + kLanes; ++hidden) scores[hidden] = -__builtin_inff();
            most = max(most, F32::load(scores + k));
        }
        const float maximum = most.reduce_max(), before = at_.maxima[row];
        at_.maximum[i] = maximum > before ? maximum : before;
    }

    // The factors that bring what was summed to the new maxima, and those themselves. All scores of a row may be -inf so far.
    void correct(int64_t row, int64_t rows) {
        for (int64_t i = 0; i < rows; i += kLanes) {
            const F32 finite = max(F32::load(at_.maximum + i), F32::broadcast(-3.4028235e38f));
            exp(F32::load(at_.maxima + row + i) - finite).store(at_.correction + i);
        }
        for (int64_t i = 0; i < rows; ++i) {
            at_.maxima[row + i] = at_.maximum[i];
            if (at_.correction[i] == 1.0f) continue;
            const F32 factor = F32::broadcast(at_.correction[i]);
            float* sums = at_.sums + (row + i) * kLanes;
            (F32::load(sums) * factor).store(sums);
            float* out = at_.out + (row + i) * shape_.padded;
            for (int64_t d = 0; d < shape_.padded; d += kLanes) (F32::load(out + d) * factor).store(out + d);
        }
    }

    void exponentiate(int64_t row, int64_t i, int64_t count) {
        float* scores = at_.scores + i * kTile;
        const F32 maximum = max(F32::broadcast(at_.maximum[i]), F32::broadcast(-3.4028235e38f));
        F32 sum = F32::load(at_.sums + row * kLanes);
        const auto part = [&](int64_t k) {
            if (k >= count) return F32::zero();
            const F32 p = exp(F32::load(scores + k) - maximum);
            sum = sum + p;
            return Tiles::kValueScales ? visible_part(p * F32::load(tiles_.value_scale() + k), count - k) : p;
        };
        uint32_t* to = at_.probabilities + i * (kTile / Words::kPerWord);
        for (int64_t k = 0; k < count; k += 2 * kLanes) {
            const F32 low = part(k), high = part(k + kLanes);
            Words::put(low, high, to + k / Words::kPerWord);
        }
        sum.store(at_.sums + row * kLanes);
    }

    // The scale of a hidden value may be NaN.
    static F32 visible_part(F32 p, int64_t count) {
        if (count >= kLanes) return p;
        float part[kLanes];
        p.store(part);
        return F32::load_part(part, static_cast<int>(count));
    }

    // Adds the values of the first `count` positions, to `rows` rows from `row` on, which is row i of the block.
    void add_values(int64_t row, int64_t i, int64_t rows, int64_t count) {
        const int64_t group = shape_.group, stride = kTile / Words::kPerWord;
        const uint32_t* probabilities = at_.probabilities + i * group * stride;
        float* out = at_.out + row * group * shape_.padded;
        const int64_t steps = count / Words::kPerWord, columns = shape_.padded / kLanes;
        Product product{probabilities, stride, nullptr, shape_.padded, kLanes, out, shape_.padded, 0, true, nullptr, shape_.padded};
        for (int64_t first = 0, left = steps; left > 0; left -= product.steps, product.a += product.steps) {
            const int64_t last = follow(tiles_.values, first, kGroupSteps * shape_.padded);
            product.b = tiles_.values[first];
            product.steps = at_most(left, (last - first) * kGroupSteps);
            product.ahead = tiles_.after_values(first);
            multiply<Words>(product, rows * group, columns);
            first = last;
        }
        if (steps * Words::kPerWord == count) return;
        // The last value that is seen shares its words with one that is not.
        const I32 low = I32::broadcast(0xffff);
        const uint32_t* last = tiles_.values[steps / kGroupSteps] + steps % kGroupSteps * shape_.padded;
        for (int64_t d = 0; d < shape_.padded; d += kLanes) {
            const I32 words = I32::load(reinterpret_cast<const int32_t*>(last + d));
            (words & low).store(reinterpret_cast<int32_t*>(at_.half + d));
        }
        product.b = at_.half, product.steps = 1, product.ahead = nullptr;
        multiply<Words>(product, rows * group, columns);
    }

    void write(int64_t rows, float* out) const {
        for (int64_t row = 0; row < rows; ++row, out += shape_.head_dim + 2) {
            out[0] = at_.maxima[row];
            out[1] = F32::load(at_.sums + row * kLanes).reduce_add();
            std::memcpy(out + 2, at_.out + row * shape_.padded, shape_.head_dim * sizeof(float));
        }
    }

    const Attention& call_;
    const AttentionParts& parts_;
    const Shape shape_;
    const int64_t words_;  // of a padded row
    const Scratch at_;
    int64_t position_ = 0;
    int64_t end_ = 0;                   // no row sees a position from here on, or another call takes it
    Tiles tiles_;
};

inline void attention_parts(const Attention& call, const AttentionParts& parts, float* out, void* scratch) {
    switch (call.cache.type) {
        case CacheType::f32: return StretchAttention<RowTiles<FloatWords, CacheType::f32>>(call, parts, scratch).run(out);
        case CacheType::f16: return StretchAttention<RowTiles<FloatWords, CacheType::f16>>(call, parts, scratch).run(out);
        case CacheType::bf16: return StretchAttention<RowTiles<Halves, CacheType::bf16>>(call, parts, scratch).run(out);
        case CacheType::int8: return StretchAttention<RowTiles<Halves, CacheType::int8>>(call, parts, scratch).run(out);
        case CacheType::bf16_pairs:
            if constexpr (kReadsPairs) StretchAttention<PairTiles<Halves>>(call, parts, scratch).run(out);
            return;
    }
}

inline size_t attention_scratch(const Heads& heads, const CacheLayer&) { return Scratch(Shape(heads), nullptr).bytes; }

inline void attention_join(const float* const* parts, int64_t count, int32_t head_dim, float* out) {
    float maximum = -3.4028235e38f;  // parts in which nothing counts have -inf
    for (int64_t i = 0; i < count; ++i) maximum = parts[i][0] > maximum ? parts[i][0] : maximum;
    F32 sum = F32::zero();
    for (int64_t i = 0; i < count; ++i) {
        const F32 weight = exp(F32::broadcast(parts[i][0]) - F32::broadcast(maximum));
        sum = fma(weight, F32::broadcast(parts[i][1]), sum);
        for (int64_t d = 0; d < head_dim; d += kLanes) {
            const int lanes = static_cast<int>(at_most(kLanes, head_dim - d));
            const F32 before = i == 0 ? F32::zero() : F32::load_part(out + d, lanes);
            fma(weight, F32::load_part(parts[i] + 2 + d, lanes), before).store_part(out + d, lanes);
        }
    }
    for (int64_t d = 0; d < head_dim; d += kLanes) {
        const int lanes = static_cast<int>(at_most(kLanes, head_dim - d));
        (F32::load_part(out + d, lanes) / sum).store_part(out + d, lanes);
    }
}

}  // namespace corral::CORRAL_NAMESPACE
