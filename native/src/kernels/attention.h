// Attention of some rows over one stretch of positions, and the joining of stretches.
//
// Tiles of 64 positions are taken in order; each row keeps its maximum so far, the sum of its exponentials in 16 lanes, and
// the weighted values, scaled to that maximum (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135).
// A tile is packed once and serves all rows and all query heads of its key-value head. Keys that a row must not see are left
// out of its products, rather than multiplied by zero: a NaN in what follows a position cannot reach it.
#pragma once
#include <type_traits>

#include "attention_tiles.h"

namespace corral::CORRAL_NAMESPACE {

constexpr int64_t kChunk = 256;  // rows, times heads of the group, that go through the tiles together
constexpr int64_t kBlock = 30;   // of those, how many are taken from scores to values while all stays in the first cache

constexpr int64_t kAhead = 256;  // positions that are asked for before their tile has its turn
constexpr int64_t kFetch = 12;   // at a time: seven times in a tile, so somewhat more than a tile needs
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

template <typename Words, CacheType type>
class StretchAttention {
public:
    StretchAttention(const Attention& call, const AttentionPart& part, void* scratch)
        : call_(call), part_(part), shape_(call.heads), words_(shape_.padded / Words::kPerWord),
          at_(shape_, static_cast<uint8_t*>(scratch)) {
        std::memset(at_.zeros, 0, shape_.padded * sizeof(float));
        const int64_t row_bytes = shape_.head_dim * element_size(type);
        keys_ = call.cache.data + part.kv_head * call.cache.slots * row_bytes;
        values_ = keys_ + call.heads.kv_heads * call.cache.slots * row_bytes;
        key_scales_ = call.cache.scales + part.kv_head * call.cache.slots;
        value_scales_ = key_scales_ + call.heads.kv_heads * call.cache.slots;
    }

    void run(float* out) {
        for (int64_t first = 0; first < part_.count; first += shape_.chunk) {
            const int64_t count = at_most(shape_.chunk, part_.count - first);
            run_chunk(first, count);
            write(count * shape_.group, out + first * shape_.group * (shape_.head_dim + 2));
        }
    }

private:
    // The cache lies in the order that `transpose` and `join` read.
    bool is_direct() const {
        const bool same = Words::kPerWord == 2 ? type == CacheType::bf16 : type == CacheType::f32;
        return same && shape_.padded == shape_.head_dim;
    }

    void run_chunk(int64_t first, int64_t count) {
        const int64_t rows = count * shape_.group;
        for (int64_t row = 0; row < count; ++row) load_queries(first + row, at_.q + row * shape_.group * words_);
        std::memset(at_.out, 0, rows * shape_.padded * sizeof(float));
        std::memset(at_.sums, 0, rows * kLanes * sizeof(float));
        for (int64_t i = 0; i < rows; ++i) at_.maxima[i] = -__builtin_inff();

        position_ = part_.span->start + part_.first + first;  // of the chunk's first row
        const int64_t begin = part_.stretch * kStretch;
        const int64_t end = at_most(begin + kStretch, position_ + count);
        fetched_ = begin;
        for (int64_t tile = begin; tile < end; tile += kTile) {
            wanted_ = at_most(tile + kTile + kAhead, position_ + count);
            locate(tile, end);
            pack(at_most(kTile, end - tile));
            for (int64_t row = 0; row < count; row += shape_.block)
                attend(tile, row, at_most(row + shape_.block, count));
        }
    }

    void load_queries(int64_t row, uint32_t* to) const {
        const float* q = call_.q + (part_.span->first_row + part_.first + row) * call_.q_stride +
                         part_.kv_head * shape_.group * shape_.head_dim;
        for (int64_t head = 0; head < shape_.group; ++head)
            convert<Words, CacheType::f32>(reinterpret_cast<const uint8_t*>(q + head * shape_.head_dim), shape_.head_dim,
                                           shape_.padded, to + head * words_);
    }

    // Where the keys and values of a tile are, and their scales; zeros behind the end.
    void locate(int64_t tile, int64_t end) {
        const int64_t row_bytes = shape_.head_dim * element_size(type), size = call_.cache.block_size;
        const int there = static_cast<int>(at_most(kTile, end - tile));
        int64_t block = tile / size, offset = tile % size;
        for (int first = 0; first < there; ++block, offset = 0) {
            const int last = static_cast<int>(at_most(there, first + size - offset));
            const int64_t slot = part_.span->blocks[block] * size + offset - first;
            for (int i = first; i < last; ++i) {
                slot_[i] = slot + i;
                key_[i] = keys_ + (slot + i) * row_bytes;
                value_[i] = values_ + (slot + i) * row_bytes;
            }
            first = last;
        }
        for (int i = there; i < kTile; ++i) slot_[i] = 0, key_[i] = value_[i] = at_.zeros;
    }

    void load_scales() {
        for (int i = 0; i < kTile; ++i) {
            at_.key_scale[i] = call_.heads.scale;
            if constexpr (type == CacheType::int8) {
                at_.key_scale[i] *= widen_scale(key_scales_[slot_[i]]);
                at_.value_scale[i] = widen_scale(value_scales_[slot_[i]]);
            }
        }
    }

    static float widen_scale(uint16_t half) {
        const uint32_t bits = uint32_t{half} << 16;
        float scale;
        std::memcpy(&scale, &bits, sizeof scale);
        return scale;
    }

    // Packs the tile that was located, `count` positions.
    void pack(int64_t count) {
        load_scales();
        const uint32_t *key[kTile], *value[kTile];
        for (int i = 0; i < kTile; ++i) {
            key[i] = reinterpret_cast<const uint32_t*>(key_[i]);
            value[i] = reinterpret_cast<const uint32_t*>(value_[i]);
        }
        for (int64_t first = 0; first < count; first += kLanes) {
            fetch();
            const uint32_t* const* rows = as_words(key + first);
            for (int64_t w = 0; w < words_; w += kLanes) transpose(rows, w, at_.keys + w * kTile + first, kTile);
            rows = as_words(value + first);
            for (int64_t i = 0; i < kLanes; i += Words::kPerWord)
                Words::join(rows[i], rows[i + Words::kPerWord - 1], shape_.padded,
                            at_.values + (first + i) / Words::kPerWord * shape_.padded);
        }
    }

    // Asks for the next positions that are wanted, a few at a time: a core waits for few lines at once, and what else it needs
    // queues up behind them. The hardware asks ahead too, but stops at every page, and blocks lie anywhere.
    void fetch() {
        __asm__ volatile("");  // GCC takes a function that only prefetches for one without effects, and leaves its calls out
        const int64_t row_bytes = shape_.head_dim * element_size(type), size = call_.cache.block_size;
        const int64_t end = at_most(fetched_ + kFetch, wanted_);
        while (fetched_ < end) {
            const int64_t offset = fetched_ % size, run = at_most(size - offset, end - fetched_);
            const int64_t from = (part_.span->blocks[fetched_ / size] * size + offset) * row_bytes;
            for (int64_t at = from; at < from + run * row_bytes; at += 64) {
                __builtin_prefetch(keys_ + at, 0, 2);
                __builtin_prefetch(values_ + at, 0, 2);
            }
            fetched_ += run;
        }
    }

    const uint32_t* const* as_words(const uint32_t* const* rows) {
        if (is_direct()) return rows;
        for (int i = 0; i < kLanes; ++i) {
            uint32_t* to = at_.row + i * words_;
            convert<Words, type>(reinterpret_cast<const uint8_t*>(rows[i]), shape_.head_dim, shape_.padded, to);
            converted_[i] = to;
        }
        return converted_;
    }

    // How many positions of a tile a row of the chunk sees.
    int64_t visible(int64_t tile, int64_t row) const {
        return at_least(0, at_most(kTile, position_ + row + 1 - tile));
    }

    // Rows [begin, end) of the chunk, which fit into a block, over the packed tile.
    void attend(int64_t tile, int64_t begin, int64_t end) {
        while (begin < end && visible(tile, begin) == 0) ++begin;
        if (begin == end) return;
        const int64_t group = shape_.group, rows = (end - begin) * group;
        const int64_t columns = (visible(tile, end - 1) + kLanes - 1) / kLanes;
        const uint32_t* q = at_.q + begin * group * words_;
        multiply<Words>({q, words_, at_.keys, kTile, at_.scores, kTile, words_, false}, rows, columns);

        fetch();
        for (int64_t i = 0; i < rows; ++i) find_maximum(begin * group + i, i, visible(tile, begin + i / group));
        fetch();
        correct(begin * group, rows);
        for (int64_t i = 0; i < rows; ++i) exponentiate(begin * group + i, i, visible(tile, begin + i / group));

        fetch();
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
            const F32 scaled = F32::load(scores + k) * F32::load(at_.key_scale + k);
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
            return type == CacheType::int8 ? visible_part(p * F32::load(at_.value_scale + k), count - k) : p;
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
        const int64_t steps = count / Words::kPerWord;
        Product product{probabilities, stride, at_.values, shape_.padded, out, shape_.padded, steps, true};
        multiply<Words>(product, rows * group, shape_.padded / kLanes);
        if (steps * Words::kPerWord == count) return;
        // The last value that is seen shares its words with one that is not.
        const I32 low = I32::broadcast(0xffff);
        for (int64_t d = 0; d < shape_.padded; d += kLanes) {
            const I32 words = I32::load(reinterpret_cast<const int32_t*>(at_.values + steps * shape_.padded + d));
            (words & low).store(reinterpret_cast<int32_t*>(at_.half + d));
        }
        product.a += steps, product.b = at_.half, product.steps = 1;
        multiply<Words>(product, rows * group, shape_.padded / kLanes);
    }

    void write(int64_t rows, float* out) const {
        for (int64_t row = 0; row < rows; ++row, out += shape_.head_dim + 2) {
            out[0] = at_.maxima[row];
            out[1] = F32::load(at_.sums + row * kLanes).reduce_add();
            std::memcpy(out + 2, at_.out + row * shape_.padded, shape_.head_dim * sizeof(float));
        }
    }

    const Attention& call_;
    const AttentionPart& part_;
    const Shape shape_;
    const int64_t words_;  // of a padded row
    const Scratch at_;
    const uint8_t *keys_, *values_;  // slot 0 of the head
    const uint16_t *key_scales_, *value_scales_;
    int64_t position_ = 0;
    int64_t fetched_ = 0, wanted_ = 0;  // positions before these
    const uint8_t *key_[kTile], *value_[kTile];  // of the tile that is packed
    int64_t slot_[kTile];
    const uint32_t* converted_[kLanes];
};

inline void attention_part(const Attention& call, const AttentionPart& part, float* out, void* scratch) {
#ifdef __AVX512BF16__
    using Halves = Bf16Words;
#else
    using Halves = FloatWords;
#endif
    switch (call.cache.type) {
        case CacheType::f32: return StretchAttention<FloatWords, CacheType::f32>(call, part, scratch).run(out);
        case CacheType::f16: return StretchAttention<FloatWords, CacheType::f16>(call, part, scratch).run(out);
        case CacheType::bf16: return StretchAttention<Halves, CacheType::bf16>(call, part, scratch).run(out);
        case CacheType::int8: return StretchAttention<Halves, CacheType::int8>(call, part, scratch).run(out);
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
