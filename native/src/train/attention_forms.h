// What both passes of attention share: where the copies of keys and values lie, queries as right factors, and what is hidden.
//
// All products have the keys as rows and 64 queries as columns (or the dimensions of a head as rows and the queries as columns),
// so that maxima, sums and scales of queries are vectors, and nothing is ever summed across a vector.
#pragma once
#include "elements.h"

namespace corral::CORRAL_NAMESPACE {

constexpr int64_t kQueries = kAttentionTile;

template <class Elements>
struct AttentionForms {
    using P = Packing<Elements>;
    using Words = typename P::Words;
    using Element = typename Elements::Element;

    explicit AttentionForms(const corral_packed_attention& call)
        : call(call), group(call.q_heads / call.kv_heads), dims(call.head_dim), padded(rounded_up(dims, kLanes)),
          dim_words(P::words(padded)), form(call.kv_heads * document_start(call, call.documents) * dim_words) {}

    const corral_packed_attention& call;
    const int64_t group, dims, padded;  // of a head
    const int64_t dim_words;            // of a padded row
    const int64_t form;                 // words of a copy of all keys, or all values

    int64_t begin(int64_t document) const { return call.bounds[document]; }
    int64_t length(int64_t document) const { return call.bounds[document + 1] - call.bounds[document]; }

    // Of a document and a head in a copy. As rows: [keys][dim_words].
    uint32_t* at(void* shared, int64_t copy, int64_t document, int32_t kv_head) const {
        const int64_t row = kv_head * document_start(call, call.documents) + document_start(call, document);
        return static_cast<uint32_t*>(shared) + copy * form + row * dim_words;
    }
    const uint32_t* at(const void* shared, int64_t copy, int64_t document, int32_t kv_head) const {
        return at(const_cast<void*>(shared), copy, document, kv_head);
    }

    // Turned, a tile of 64 keys after the other: [padded][words of the tile's keys].
    int64_t tile_words(int64_t document, int64_t tile) const {
        return fewer(kAttentionTile, rounded_up(length(document) - tile, kDocumentUnit)) / P::kPerWord;
    }

    void copy_rows(const void* tensor, int64_t document, int32_t kv_head, uint32_t* to) const {
        const int64_t stride = call.kv_heads * dims;
        const Element* from = static_cast<const Element*>(tensor) + begin(document) * stride + kv_head * dims;
        for (int64_t i = 0; i < length(document); ++i) P::row(from + i * stride, dims, dim_words, to + i * dim_words);
    }

    void copy_turned(const void* tensor, int64_t document, int32_t kv_head, uint32_t* to) const {
        const int64_t stride = call.kv_heads * dims;
        const Element* from = static_cast<const Element*>(tensor) + begin(document) * stride + kv_head * dims;
        for (int64_t tile = 0; tile < length(document); tile += kAttentionTile) {
            const int64_t words = tile_words(document, tile);
            for (int64_t word = 0; word < words; word += kLanes) {
                const int64_t first = tile + word * P::kPerWord;
                P::turn_joined(from + first * stride, stride, length(document) - first, dims, to + tile * dim_words + word, words);
            }
        }
    }

    // 64 rows of queries, or of what is as large, as words of dimensions: [dim_words][64]. Those that are not there are zero.
    void turn_queries(const Element* from, int64_t rows, uint32_t* to) const {
        const int64_t stride = call.q_heads * dims;
        for (int64_t i = 0; i < rounded_up(rows, kLanes); i += kLanes)
            P::turn(from + i * stride, stride, fewer(kLanes, rows - i), dims, to + i, kQueries);
    }

    // Floats [padded][64] back as rows of a tensor; `room` is [16][padded].
    void store_turned(const float* turned, int64_t rows, float* room, Element* to) const {
        const uint32_t* lines[kLanes];
        for (int64_t first = 0; first < rows; first += kLanes) {
            for (int64_t d = 0; d < padded; d += kLanes) {
                for (int64_t i = 0; i < kLanes; ++i)
                    lines[i] = reinterpret_cast<const uint32_t*>(turned + (d + i) * kQueries + first);
                transpose(lines, 0, reinterpret_cast<uint32_t*>(room + d), padded);
            }
            for (int64_t i = first; i < fewer(first + kLanes, rows); ++i)
                store_row(room + (i - first) * padded, to + i * call.q_heads * dims);
        }
    }

    void store_row(const float* from, Element* to) const {
        each_part(0, dims, [&](int64_t d, int lanes) { Elements::store_part(F32::load(from + d), to + d, lanes); });
    }

    // Words of dimensions are written 16 at a time.
    int64_t turned_words() const { return rounded_up(dim_words, kLanes) * kQueries; }
};

// On the diagonal a query sees its own key and those before: of the 16 queries from `column` on, key `key` is hidden from
// those before it.
struct Diagonal {
    float hidden[2 * kLanes];
    Diagonal() {
        for (int i = 0; i < 2 * kLanes; ++i) hidden[i] = i < kLanes ? -__builtin_inff() : 0.0f;
    }
    // Minus infinity for the queries that a key is hidden from; it is one of those, or before them.
    F32 of(int64_t key, int64_t column) const { return F32::load(hidden + kLanes - (key > column ? key - column : 0)); }
};

}  // namespace corral::CORRAL_NAMESPACE
