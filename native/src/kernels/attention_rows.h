// Tiles of a cache whose rows are positions: each is packed once and serves all rows and all query heads of its key-value head.
#pragma once
#include "attention_scratch.h"

namespace corral::CORRAL_NAMESPACE {

constexpr int64_t kAhead = 256;  // positions that are asked for before their tile has its turn
constexpr int64_t kFetch = 12;   // at a time: seven times in a tile, so somewhat more than a tile needs

template <typename W, CacheType type>
class RowTiles {
public:
    using Words = W;
    static constexpr bool kValueScales = type == CacheType::int8;

    RowTiles(const Attention& call, const AttentionParts& parts, const Shape& shape, const Scratch& scratch)
        : call_(call), parts_(parts), shape_(shape), at_(scratch) {
        std::memset(at_.zeros, 0, shape_.padded * sizeof(float));
        for (int i = 0; i < kTile; ++i) at_.key_scale[i] = call.heads.scale;
        for (int i = 0; i < kGroups; ++i) {
            keys[i] = at_.keys + i * kLanes;
            values[i] = at_.values + i * kLanes / Words::kPerWord * shape_.padded;
        }
        const int64_t row_bytes = shape_.head_dim * element_size(type);
        keys_ = call.cache.data + parts.kv_head * call.cache.slots * row_bytes;
        values_ = keys_ + call.heads.kv_heads * call.cache.slots * row_bytes;
        key_scales_ = call.cache.scales + parts.kv_head * call.cache.slots;
        value_scales_ = key_scales_ + call.heads.kv_heads * call.cache.slots;
    }

    // The groups of the tile: [words of a key][16 positions] in steps of `key_step` words, [words of 16 positions][head_dim].
    const uint32_t* keys[kGroups];
    const uint32_t* values[kGroups];
    int64_t key_step() const { return kTile; }
    int64_t key_group() const { return kLanes; }  // words from one group to the next that follows in memory
    const float* key_scale() const { return at_.key_scale; }
    const float* value_scale() const { return at_.value_scale; }
    // What is asked for while a group is read: nothing, since `fetch` does it.
    const uint32_t* after_keys(int64_t) const { return nullptr; }
    const uint32_t* after_values(int64_t) const { return nullptr; }

    // Makes the tile ready whose positions end before `end`; this thread goes on to `last`.
    void take(int64_t tile, int64_t end, int64_t last) {
        fetched_ = at_least(fetched_, tile);
        wanted_ = at_most(tile + kTile + kAhead, last);
        locate(tile, end);
        pack(at_most(kTile, end - tile));
    }

    // Asks for the next positions that are wanted, a few at a time: a core waits for few lines at once, and what else it needs
    // queues up behind them. The hardware asks ahead too, but stops at every page, and blocks lie anywhere.
    void fetch() {
        __asm__ volatile("");  // GCC takes a function that only prefetches for one without effects, and leaves its calls out
        const int64_t row_bytes = shape_.head_dim * element_size(type), size = call_.cache.block_size;
        const int64_t end = at_most(fetched_ + kFetch, wanted_);
        while (fetched_ < end) {
            const int64_t offset = fetched_ % size, run = at_most(size - offset, end - fetched_);
            const int64_t from = (parts_.span->blocks[fetched_ / size] * size + offset) * row_bytes;
            for (int64_t at = from; at < from + run * row_bytes; at += 64) {
                __builtin_prefetch(keys_ + at, 0, 2);
                __builtin_prefetch(values_ + at, 0, 2);
            }
            fetched_ += run;
        }
    }

private:
    // The cache lies in the order that `transpose` and `join` read.
    bool is_direct() const {
        const bool same = Words::kPerWord == 2 ? type == CacheType::bf16 : type == CacheType::f32;
        return same && shape_.padded == shape_.head_dim;
    }

    // Where the keys and values of a tile are, and their scales; zeros behind the end.
    void locate(int64_t tile, int64_t end) {
        const int64_t row_bytes = shape_.head_dim * element_size(type), size = call_.cache.block_size;
        const int there = static_cast<int>(at_most(kTile, end - tile));
        int64_t block = tile / size, offset = tile % size;
        for (int first = 0; first < there; ++block, offset = 0) {
            const int last = static_cast<int>(at_most(there, first + size - offset));
            const int64_t slot = parts_.span->blocks[block] * size + offset - first;
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
            at_.key_scale[i] = call_.heads.scale * widen_scale(key_scales_[slot_[i]]);
            at_.value_scale[i] = widen_scale(value_scales_[slot_[i]]);
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
        if constexpr (type == CacheType::int8) load_scales();
        const uint32_t *key[kTile], *value[kTile];
        for (int i = 0; i < kTile; ++i) {
            key[i] = reinterpret_cast<const uint32_t*>(key_[i]);
            value[i] = reinterpret_cast<const uint32_t*>(value_[i]);
        }
        for (int64_t first = 0; first < count; first += kLanes) {
            fetch();
            const uint32_t* const* rows = as_words(key + first);
            for (int64_t w = 0; w < words(); w += kLanes) transpose(rows, w, at_.keys + w * kTile + first, kTile);
            rows = as_words(value + first);
            for (int64_t i = 0; i < kLanes; i += Words::kPerWord)
                Words::join(rows[i], rows[i + Words::kPerWord - 1], shape_.padded,
                            at_.values + (first + i) / Words::kPerWord * shape_.padded);
        }
    }

    const uint32_t* const* as_words(const uint32_t* const* rows) {
        if (is_direct()) return rows;
        for (int i = 0; i < kLanes; ++i) {
            uint32_t* to = at_.row + i * words();
            convert<Words, type>(reinterpret_cast<const uint8_t*>(rows[i]), shape_.head_dim, shape_.padded, to);
            converted_[i] = to;
        }
        return converted_;
    }

    int64_t words() const { return shape_.padded / Words::kPerWord; }

    const Attention& call_;
    const AttentionParts& parts_;
    const Shape& shape_;
    const Scratch& at_;
    const uint8_t *keys_, *values_;  // slot 0 of the head
    const uint16_t *key_scales_, *value_scales_;
    int64_t fetched_ = 0, wanted_ = 0;  // positions before these
    const uint8_t *key_[kTile], *value_[kTile];
    int64_t slot_[kTile];
    const uint32_t* converted_[kLanes];
};

}  // namespace corral::CORRAL_NAMESPACE
