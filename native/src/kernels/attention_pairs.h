// Tiles of a cache of CacheType::bf16_pairs, which are multiplied where they lie.
#pragma once
#include "attention_scratch.h"

namespace corral::CORRAL_NAMESPACE {

template <typename W>
class PairTiles {
public:
    using Words = W;
    static constexpr bool kValueScales = false;

    PairTiles(const Attention& call, const AttentionParts& parts, const Shape& shape, const Scratch& scratch)
        : call_(call), parts_(parts), group_words_(kLanes * shape.head_dim / 2), at_(scratch) {
        for (int i = 0; i < kTile; ++i) at_.key_scale[i] = call.heads.scale;
    }

    // See RowTiles.
    const uint32_t* keys[kGroups];
    const uint32_t* values[kGroups];
    int64_t key_step() const { return kLanes; }
    int64_t key_group() const { return group_words_; }
    const float* key_scale() const { return at_.key_scale; }
    const float* value_scale() const { return nullptr; }

    // What is asked for while group i is read: its values with its keys, and the next tile's keys with its values. The
    // hardware asks ahead too, but begins anew at every page, and leaves off between two streams.
    const uint32_t* after_keys(int64_t i) const { return values[i]; }
    const uint32_t* after_values(int64_t i) const { return next_keys_[i]; }

    void take(int64_t tile, int64_t end, int64_t last) {
        if (tile == next_) {
            std::memcpy(keys, next_keys_, sizeof keys);
            std::memcpy(values, next_values_, sizeof values);
        } else {
            point(parts_, tile, end, keys, values);
        }
        next_ = tile + kTile;
        if (next_ < last || parts_.next == nullptr) return point(parts_, next_, last, next_keys_, next_values_);
        const int64_t first = parts_.next->stretch * kStretch;
        point(*parts_.next, first, first + kTile, next_keys_, next_values_);
        next_ = -1;
    }

    void fetch() {}

private:
    // Where the groups of a tile lie; null from position `end` on.
    void point(const AttentionParts& parts, int64_t tile, int64_t end, const uint32_t** key, const uint32_t** value) const {
        const int64_t slots = call_.cache.slots, size = call_.cache.block_size, words = group_words_ / kLanes;
        const uint32_t* base = reinterpret_cast<const uint32_t*>(call_.cache.data) + parts.kv_head * slots * words;
        end = at_most(end, parts.span->start + parts.first + parts.count);
        int64_t block = tile / size, offset = tile % size;
        for (int i = 0; i < kGroups; ++i, tile += kLanes, offset += kLanes) {
            if (offset == size) ++block, offset = 0;
            const bool there = tile < end;
            key[i] = there ? base + (parts.span->blocks[block] * size + offset) * words : nullptr;
            value[i] = there ? key[i] + call_.heads.kv_heads * slots * words : nullptr;
        }
    }

    const Attention& call_;
    const AttentionParts& parts_;
    const int64_t group_words_;
    const Scratch& at_;
    int64_t next_ = -1;  // the tile that has been looked up ahead
    const uint32_t *next_keys_[kGroups], *next_values_[kGroups];
};

}  // namespace corral::CORRAL_NAMESPACE
