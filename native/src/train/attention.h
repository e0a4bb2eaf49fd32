// The forward pass of attention over documents side by side: each query sees its own key and those before it in its document.
//
// Tiles of 64 keys are taken in order; each query keeps its maximum so far, its sum of exponentials and its weighted values,
// scaled to that maximum (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135).
#pragma once
#include "attention_forms.h"

namespace corral::CORRAL_NAMESPACE {

template <class Elements>
class PackedAttention : AttentionForms<Elements> {
    using Forms = AttentionForms<Elements>;
    using P = Packing<Elements>;
    using Words = typename P::Words;
    using Element = typename Elements::Element;
    using Forms::call;
    using Forms::dim_words;
    using Forms::padded;
    enum Copy : int64_t { keys, values_turned, copies };

public:
    explicit PackedAttention(const corral_packed_attention& call) : Forms(call) {}

    size_t shared_bytes() const { return copies * this->form * sizeof(uint32_t); }

    size_t scratch_bytes() const {
        return (this->turned_words() + (2 * kAttentionTile + padded + kLanes) * kQueries + kLanes * padded) * sizeof(uint32_t);
    }

    void prepare(int64_t document, int32_t kv_head, void* shared) const {
        this->copy_rows(call.k, document, kv_head, this->at(shared, keys, document, kv_head));
        this->copy_turned(call.v, document, kv_head, this->at(shared, values_turned, document, kv_head));
    }

    void run(int64_t document, int32_t kv_head, int64_t first, const void* shared, void* scratch) {
        uint32_t* q = static_cast<uint32_t*>(scratch);
        scores_ = reinterpret_cast<float*>(q + this->turned_words());
        weights_ = q + this->turned_words() + kAttentionTile * kQueries;
        out_ = scores_ + 2 * kAttentionTile * kQueries;
        float* room = out_ + padded * kQueries;

        const uint32_t* k = this->at(shared, keys, document, kv_head);
        const uint32_t* v = this->at(shared, values_turned, document, kv_head);
        rows_ = fewer(kQueries, this->length(document) - first);
        for (int64_t i = 0; i < this->group; ++i) {
            const int64_t head = kv_head * this->group + i, row = this->begin(document) + first;
            const int64_t at = (row * call.q_heads + head) * this->dims;
            this->turn_queries(static_cast<const Element*>(call.q) + at, rows_, q);
            start();
            for (int64_t tile = 0; tile <= first; tile += kAttentionTile) {
                const int64_t count = fewer(kAttentionTile, first + rows_ - tile);
                multiply_words<Words>(k + tile * dim_words, dim_words, q, kQueries, dim_words, false, count, rows_, scores_,
                                      kQueries);
                for (int64_t column = 0; column < rows_; column += kLanes) weigh(column, count, tile == first);
                multiply_words<Words>(v + tile * dim_words, this->tile_words(document, tile), weights_, kQueries, P::words(count),
                                      true, this->dims, rows_, out_, kQueries);
            }
            finish(call.lse + row * call.q_heads + head);
            this->store_turned(out_, rows_, room, static_cast<Element*>(call.out) + at);
        }
    }

private:
    void start() {
        std::memset(out_, 0, padded * kQueries * sizeof(float));
        for (int64_t i = 0; i < kQueries; ++i) maxima_[i] = -__builtin_inff(), sums_[i] = 0;
    }

    // The weights of `count` keys for 16 queries; brings what is there to the new maxima.
    void weigh(int64_t column, int64_t count, bool diagonal) {
        float* scores = scores_ + column;
        const int64_t seen = diagonal ? fewer(count, column + kLanes) : count;
        const F32 before = F32::load(maxima_ + column), scale = F32::broadcast(call.scale);
        F32 most = before;
        for (int64_t key = 0; key < seen; ++key) {
            F32 score = F32::load(scores + key * kQueries);
            if (diagonal && key > column) {
                score = score + diagonal_.of(key, column);
                score.store(scores + key * kQueries);
            }
            most = max(score, most);
        }
        const F32 offset = F32::zero() - most * scale, factor = exp(fma(before, scale, offset));
        F32 sum = F32::load(sums_ + column) * factor;
        for (int64_t key = 0; key < count; key += 2) {
            F32 weight[2] = {F32::zero(), F32::zero()};
            for (int64_t i = 0; i < 2 && key + i < seen; ++i) {
                weight[i] = exp(fma(F32::load(scores + (key + i) * kQueries), scale, offset));
                sum = sum + weight[i];
            }
            P::put_joined(weight[0], weight[1], weights_ + key / P::kPerWord * kQueries + column, kQueries);
        }
        most.store(maxima_ + column);
        sum.store(sums_ + column);
        for (int64_t d = 0; d < this->dims; ++d) {
            float* out = out_ + d * kQueries + column;
            (F32::load(out) * factor).store(out);
        }
    }

    void finish(float* lse) {
        for (int64_t i = 0; i < rows_; ++i) lse[i * call.q_heads] = maxima_[i] * call.scale + __builtin_logf(sums_[i]);
        for (int64_t d = 0; d < this->dims; ++d)
            for (int64_t column = 0; column < rows_; column += kLanes) {
                float* out = out_ + d * kQueries + column;
                (F32::load(out) / F32::load(sums_ + column)).store(out);
            }
    }

    const Diagonal diagonal_;
    int64_t rows_ = 0;
    float *scores_ = nullptr, *out_ = nullptr;  // [keys][64], [padded][64]
    uint32_t* weights_ = nullptr;               // words of keys [..][64]
    float maxima_[kQueries], sums_[kQueries];
};

}  // namespace corral::CORRAL_NAMESPACE
