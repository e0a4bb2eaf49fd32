// What an instruction set provides for training: forward and backward passes over tensors of float or bfloat16.
//
// The calls are those of corral_native.h. As everywhere, a number is computed in an order that depends on nothing but what it
// is made of: not on how the work is shared, and not on the rows beside it. (Gradients of weights are sums over rows; their
// order depends on the number of rows only.)
#pragma once
#include <cstddef>
#include <cstdint>

#include "../../include/corral_native.h"

namespace corral {

// Columns of a product that a thread takes at a time: a panel of the right factor.
constexpr int64_t kProductColumns = 64;

// Rows of queries, and of keys, that meet at a time.
constexpr int64_t kAttentionTile = 64;
// Documents begin at multiples of this in the copies of keys and values.
constexpr int64_t kDocumentUnit = 32;

// Rows whose gradients for a weight are added up before those of others.
constexpr int64_t kWeightRows = 64;

// Where the copy of a document begins, in rows. Always inline: see matrix.h.
[[gnu::always_inline]] inline int64_t document_start(const corral_packed_attention& call, int64_t document) {
    const int64_t least = call.bounds[document] + (kDocumentUnit - 1) * document;
    return (least + kDocumentUnit - 1) / kDocumentUnit * kDocumentUnit;
}

struct TrainKernels {
    // Bytes of so many rows of the left factor as words; 0 if it is read where it lies.
    size_t (*product_left)(const corral_product&, int64_t rows);
    // Makes these words of the rows [row, row_end).
    void (*product_prepare)(const corral_product&, int64_t row, int64_t row_end, uint32_t* left);
    // The rows [row, row_end), whose words are `left`, and columns [column, column_end), at most kProductColumns.
    void (*product)(const corral_product&, const uint32_t* left, int64_t row, int64_t row_end, int64_t column,
                    int64_t column_end, void* scratch);
    // Bytes of scratch for so many rows at a time.
    size_t (*product_scratch)(const corral_product&, int64_t rows);

    // Keys and values of a document and a head in the forms that the passes read, into memory that all threads share.
    size_t (*attention_shared)(const corral_packed_attention&, bool backward);
    void (*attention_prepare)(const corral_packed_attention&, bool backward, int64_t document, int32_t kv_head, void* shared);
    size_t (*attention_scratch)(const corral_packed_attention&, bool backward);
    // Of a document, the queries from `first` on, kAttentionTile of them at most, of the heads of a key-value head.
    void (*attention)(const corral_packed_attention&, int64_t document, int32_t kv_head, int64_t first, const void* shared,
                      void* scratch);
    // Of a document and a key-value head: all gradients.
    void (*attention_backward)(const corral_packed_attention&, int64_t document, int32_t kv_head, const void* shared,
                               void* scratch);

    // Rows [begin, end). `partial` [columns] takes the sum of the rows' gradients for the weight, or is null.
    void (*norm)(const corral_norm&, int64_t begin, int64_t end);
    void (*norm_backward)(const corral_norm&, int64_t begin, int64_t end, float* partial);
    // weight_grad[begin, end) = the sum of partials [count, columns] in their order.
    void (*norm_weight)(const corral_norm&, const float* partials, int64_t count, int64_t begin, int64_t end);

    // Elements [begin, end).
    void (*gate)(const corral_gate&, int64_t begin, int64_t end);
    void (*gate_backward)(const corral_gate&, int64_t begin, int64_t end);
    void (*rotate)(const corral_rotation&, int64_t begin, int64_t end);

    void (*token_logprob)(const corral_token_loss&, int64_t row);
    void (*logits_gradient)(const corral_token_loss&, int64_t row);
};

}  // namespace corral
