// The training part of an instruction set's table. See ../kernels/table.h for what must not be in here.
#pragma once
#include "attention.h"
#include "attention_backward.h"
#include "loss.h"
#include "product.h"
#include "rows.h"
#include "train.h"

namespace corral::CORRAL_NAMESPACE {

template <template <class> class Pass, typename Call, typename Body>
inline auto typed(const Call& call, Body body) {
    return by_type(call.type, [&](auto elements) { return body(Pass<decltype(elements)>(call)); });
}

inline size_t product_left(const corral_product& call, int64_t rows) {
    return typed<LinearProduct>(call, [=](const auto& own) { return own.left_bytes(rows); });
}

inline void product_prepare(const corral_product& call, int64_t row, int64_t row_end, uint32_t* left) {
    typed<LinearProduct>(call, [=](const auto& own) { own.prepare(row, row_end, left); });
}

inline void product(const corral_product& call, const uint32_t* left, int64_t row, int64_t row_end, int64_t column,
                    int64_t column_end, void* scratch) {
    typed<LinearProduct>(call, [=](const auto& own) { own.run(left, row, row_end, column, column_end, scratch); });
}

inline size_t product_scratch(const corral_product& call, int64_t rows) {
    return typed<LinearProduct>(call, [=](const auto& own) { return own.scratch_bytes(rows); });
}

inline size_t packed_attention_shared(const corral_packed_attention& call, bool backward) {
    const auto bytes = [](const auto& own) { return own.shared_bytes(); };
    return backward ? typed<PackedAttentionBackward>(call, bytes) : typed<PackedAttention>(call, bytes);
}

inline void packed_attention_prepare(const corral_packed_attention& call, bool backward, int64_t document, int32_t kv_head,
                                     void* shared) {
    const auto prepare = [=](const auto& own) { own.prepare(document, kv_head, shared); };
    if (backward) typed<PackedAttentionBackward>(call, prepare);
    else typed<PackedAttention>(call, prepare);
}

inline size_t packed_attention_scratch(const corral_packed_attention& call, bool backward) {
    const auto bytes = [](const auto& own) { return own.scratch_bytes(); };
    return backward ? typed<PackedAttentionBackward>(call, bytes) : typed<PackedAttention>(call, bytes);
}

inline void packed_attention(const corral_packed_attention& call, int64_t document, int32_t kv_head, int64_t first,
                             const void* shared, void* scratch) {
    typed<PackedAttention>(call, [=](auto&& own) { own.run(document, kv_head, first, shared, scratch); });
}

inline void packed_attention_backward(const corral_packed_attention& call, int64_t document, int32_t kv_head, const void* shared,
                                      void* scratch) {
    typed<PackedAttentionBackward>(call, [=](auto&& own) { own.run(document, kv_head, shared, scratch); });
}

inline void norm(const corral_norm& call, int64_t begin, int64_t end) {
    by_type(call.type, [&](auto elements) { norm_rows<decltype(elements)>(call, begin, end); });
}

inline void norm_backward(const corral_norm& call, int64_t begin, int64_t end, float* partial) {
    by_type(call.type, [&](auto elements) { norm_rows_backward<decltype(elements)>(call, begin, end, partial); });
}

inline void norm_weight(const corral_norm& call, const float* partials, int64_t count, int64_t begin, int64_t end) {
    by_type(call.type, [&](auto elements) { norm_weight_grad<decltype(elements)>(call, partials, count, begin, end); });
}

inline void gate(const corral_gate& call, int64_t begin, int64_t end) {
    by_type(call.type, [&](auto elements) { gate_elements<decltype(elements)>(call, begin, end); });
}

inline void gate_backward(const corral_gate& call, int64_t begin, int64_t end) {
    by_type(call.type, [&](auto elements) { gate_elements_backward<decltype(elements)>(call, begin, end); });
}

inline void rotate_heads(const corral_rotation& call, int64_t begin, int64_t end) {
    by_type(call.type, [&](auto elements) { rotate_rows<decltype(elements)>(call, begin, end); });
}

inline void token_logprob(const corral_token_loss& call, int64_t row) {
    by_type(call.type, [&](auto elements) { TokenLoss<decltype(elements)>(call, row).logprob(); });
}

inline void logits_gradient(const corral_token_loss& call, int64_t row) {
    by_type(call.type, [&](auto elements) { TokenLoss<decltype(elements)>(call, row).gradient(); });
}

constexpr TrainKernels kTrain = {
    product_left,
    product_prepare,
    product,
    product_scratch,
    packed_attention_shared,
    packed_attention_prepare,
    packed_attention_scratch,
    packed_attention,
    packed_attention_backward,
    norm,
    norm_backward,
    norm_weight,
    gate,
    gate_backward,
    rotate_heads,
    token_logprob,
    logits_gradient,
};

}  // namespace corral::CORRAL_NAMESPACE
