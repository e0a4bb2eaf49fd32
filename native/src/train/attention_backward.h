// The backward pass of attention: the weights are computed again from the logarithms of their sums (Dao et al.,
// arXiv 2205.14135). With p the weights, s the scaled scores, and primes for gradients,
//
//     v' = p^T out'      s' = p (out' v^T - out' . out)      k' = scale s'^T q      q' = scale s' k
#pragma once
#include <type_traits>

#include "attention_forms.h"

namespace corral::CORRAL_NAMESPACE {

template <class Elements>
class PackedAttentionBackward : AttentionForms<Elements> {
    using Forms = AttentionForms<Elements>;
    using P = Packing<Elements>;
    using Words = typename P::Words;
    using Element = typename Elements::Element;
    using Forms::call;
    using Forms::dim_words;
    using Forms::padded;
    enum Copy : int64_t { keys, values, keys_turned, copies };
    static constexpr int64_t kTileFloats = kAttentionTile * kQueries;
    static constexpr int64_t kQueryWords = kQueries / P::kPerWord;

public:
    explicit PackedAttentionBackward(const corral_packed_attention& call) : Forms(call), joined_(rounded_up(padded, 2 * kLanes)) {}

    size_t shared_bytes() const { return copies * this->form * sizeof(uint32_t); }

    size_t scratch_bytes() const {
        int64_t longest = 0;
        for (int64_t i = 0; i < call.documents; ++i) longest = longest > this->length(i) ? longest : this->length(i);
        return Room(*this, nullptr, longest).words * sizeof(uint32_t);
    }

    void prepare(int64_t document, int32_t kv_head, void* shared) const {
        this->copy_rows(call.k, document, kv_head, this->at(shared, keys, document, kv_head));
        this->copy_rows(call.v, document, kv_head, this->at(shared, values, document, kv_head));
        this->copy_turned(call.k, document, kv_head, this->at(shared, keys_turned, document, kv_head));
    }

    void run(int64_t document, int32_t kv_head, const void* shared, void* scratch) {
        const int64_t length = this->length(document);
        room_ = Room(*this, static_cast<uint32_t*>(scratch), length);
        k_ = this->at(shared, keys, document, kv_head);
        v_ = this->at(shared, values, document, kv_head);
        k_turned_ = this->at(shared, keys_turned, document, kv_head);
        std::memset(room_.k, 0, length * padded * sizeof(float));
        std::memset(room_.v, 0, length * padded * sizeof(float));
        for (int64_t i = 0; i < this->group; ++i)
            for (int64_t first = 0; first < length; first += kQueries) pass_queries(document, kv_head * this->group + i, first);
        const int64_t stride = call.kv_heads * this->dims, at = this->begin(document) * stride + kv_head * this->dims;
        for (int64_t row = 0; row < length; ++row) {
            this->store_row(room_.k + row * padded, static_cast<Element*>(call.k_grad) + at + row * stride);
            this->store_row(room_.v + row * padded, static_cast<Element*>(call.v_grad) + at + row * stride);
        }
    }

private:
    // The memory of a thread.
    struct Room {
        uint32_t *q_turned, *out_turned, *q_joined, *out_joined;  // queries and gradients: [dim_words][64], [words of 64][padded]
        uint32_t *weights, *slopes, *slopes_joined;               // p^T, s'^T: [keys][words of 64], and [words of keys][64]
        float *scores, *products;                                 // [keys][64]
        float *k, *v, *q;                                         // gradients: [keys][padded] twice, [padded][64]
        float* line;
        int64_t words = 0;

        Room() = default;
        Room(const PackedAttentionBackward& own, uint32_t* base, int64_t length) {
            const auto take = [&](auto*& part, int64_t count) {
                part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(base == nullptr ? nullptr : base + words);
                words += rounded_up(count, kLanes);
            };
            take(q_turned, own.turned_words());
            take(out_turned, own.turned_words());
            take(q_joined, kQueryWords * own.joined_);
            take(out_joined, kQueryWords * own.joined_);
            take(weights, kAttentionTile * kQueryWords);
            take(slopes, kAttentionTile * kQueryWords);
            take(slopes_joined, kTileFloats);
            take(scores, kTileFloats);
            take(products, kTileFloats);
            take(q, own.padded * kQueries);
            take(line, kLanes * own.padded);
            take(k, length * own.padded);
            take(v, length * own.padded);
        }
    };

    // The queries from `first` on, of one head.
    void pass_queries(int64_t document, int64_t head, int64_t first) {
        const int64_t row = this->begin(document) + first, at = (row * call.q_heads + head) * this->dims;
        rows_ = fewer(kQueries, this->length(document) - first);
        const Element* q = static_cast<const Element*>(call.q) + at;
        const Element* out_grad = static_cast<const Element*>(call.out_grad) + at;
        this->turn_queries(q, rows_, room_.q_turned);
        this->turn_queries(out_grad, rows_, room_.out_turned);
        join_queries(q, room_.q_joined);
        join_queries(out_grad, room_.out_joined);
        load_rows(static_cast<const Element*>(call.out) + at, out_grad, call.lse + row * call.q_heads + head);
        std::memset(room_.q, 0, padded * kQueries * sizeof(float));
        for (int64_t tile = 0; tile <= first; tile += kAttentionTile)
            pass_keys(tile, fewer(kAttentionTile, first + rows_ - tile), tile == first, this->tile_words(document, tile));
        this->store_turned(room_.q, rows_, room_.line, static_cast<Element*>(call.q_grad) + at);
    }

    void join_queries(const Element* from, uint32_t* to) const {
        const int64_t stride = call.q_heads * this->dims;
        for (int64_t word = 0; word < P::words(rows_); ++word)
            P::join(from + word * P::kPerWord * stride, stride, rows_ - word * P::kPerWord, this->dims, joined_,
                    to + word * joined_);
    }

    // out' . out, and the logarithms; a query that is not there weighs nothing.
    void load_rows(const Element* out, const Element* out_grad, const float* lse) {
        const int64_t stride = call.q_heads * this->dims;
        for (int64_t i = 0; i < kQueries; ++i) {
            F32 sum = F32::zero();
            if (i < rows_)
                each_part(i * stride, i * stride + this->dims, [&](int64_t at, int lanes) {
                    sum = fma(Elements::load_part(out + at, lanes), Elements::load_part(out_grad + at, lanes), sum);
                });
            along_[i] = sum.reduce_add();
            offsets_[i] = i < rows_ ? -lse[i * call.q_heads] : -__builtin_inff();
        }
    }

    void pass_keys(int64_t tile, int64_t count, bool diagonal, int64_t tile_words) {
        const int64_t query_words = P::words(rows_), key_words = P::words(count);
        multiply_words<Words>(k_ + tile * dim_words, dim_words, room_.q_turned, kQueries, dim_words, false, count, rows_,
                              room_.scores, kQueries);
        multiply_words<Words>(v_ + tile * dim_words, dim_words, room_.out_turned, kQueries, dim_words, false, count, rows_,
                              room_.products, kQueries);
        for (int64_t column = 0; column < rows_; column += 2 * kLanes)
            for (int64_t key = 0; key < count; key += 2) differentiate(key, column, count, diagonal);
        multiply_words<Words>(room_.weights, kQueryWords, room_.out_joined, joined_, query_words, true, count, this->dims,
                              room_.v + tile * padded, padded);
        multiply_words<Words>(room_.slopes, kQueryWords, room_.q_joined, joined_, query_words, true, count, this->dims,
                              room_.k + tile * padded, padded);
        multiply_words<Words>(k_turned_ + tile * dim_words, tile_words, room_.slopes_joined, kQueries, key_words, true, this->dims,
                              rows_, room_.q, kQueries);
    }

    // Two keys and 32 queries.
    void differentiate(int64_t key, int64_t column, int64_t count, bool diagonal) {
        F32 weight[2][2], slope[2][2];
        for (int i = 0; i < 2; ++i)
            for (int j = 0; j < 2; ++j) {
                const int64_t here = column + j * kLanes;
                weight[i][j] = slope[i][j] = F32::zero();
                if (key + i >= count || here >= rows_ || (diagonal && key + i >= here + kLanes)) continue;
                const int64_t at = (key + i) * kQueries + here;
                F32 score = F32::load(room_.scores + at);
                if (diagonal && key + i > here) score = score + diagonal_.of(key + i, here);
                weight[i][j] = exp(fma(score, F32::broadcast(call.scale), F32::load(offsets_ + here)));
                const F32 product = F32::load(room_.products + at) - F32::load(along_ + here);
                slope[i][j] = weight[i][j] * product * F32::broadcast(call.scale);
            }
        for (int i = 0; i < 2 && key + i < count; ++i) {
            const int64_t at = (key + i) * kQueryWords + column / P::kPerWord;
            Words::put(weight[i][0], weight[i][1], room_.weights + at);
            Words::put(slope[i][0], slope[i][1], room_.slopes + at);
        }
        for (int j = 0; j < 2; ++j)
            P::put_joined(slope[0][j], slope[1][j], room_.slopes_joined + key / P::kPerWord * kQueries + column + j * kLanes,
                          kQueries);
    }

    const Diagonal diagonal_;
    const int64_t joined_;  // words of a row of words that rows share
    Room room_;
    const uint32_t *k_ = nullptr, *v_ = nullptr, *k_turned_ = nullptr;
    int64_t rows_ = 0;
    float along_[kQueries], offsets_[kQueries];
};

}  // namespace corral::CORRAL_NAMESPACE
