// What an instruction set provides. Each translation unit `isa_*.cpp` compiles the same sources for another instruction set and
// gives one such table; `cpu.h` chooses.
//
// Every result is computed in an order that depends on nothing but the row itself: not on how many rows there are, which
// range of them a call is given, or how many threads share the work. So a request's numbers are the same bits in any company.
#pragma once
#include "matrix.h"

namespace corral {

// out[row, n] = sum over columns of x[row] * w[n]   (+ bias[n]) (+ out[row, n] as it was)
struct Matmul {
    const Matrix* matrix;
    Activations x;
    const float* bias;       // [matrix rows] or null
    float* out;
    int64_t out_stride;      // floats from one row to the next
    bool add;                // add to what is there: residual connections
    bool exact;              // multiply 8-bit and 4-bit weights with x.bf16 instead of x.codes
};

// The keys and values of one layer: [2, kv_heads, slots, head_dim]; 2 for key and value.
//
// bf16_pairs: bfloat16 in the order in which pairs of it are multiplied, so that nothing is left to do when it is read:
//
//     keys of a head     [slots / 16][head_dim / 2][16 slots][2 dimensions]
//     values of a head   [slots / 2][head_dim][2 slots]
//
// for blocks of a multiple of 16 slots, a head_dim that is a multiple of 32, and `Kernels::reads_pairs`.
enum class CacheType : int32_t { f32 = 0, bf16 = 1, int8 = 2, f16 = 3, bf16_pairs = 4 };
struct CacheLayer {
    CacheType type;
    uint8_t* data;
    uint16_t* scales;        // int8 only: bfloat16 [2, kv_heads, slots]; the value is code * scale
    int64_t slots;
    int32_t block_size;      // slots of a block
};

// Of one sequence in a step.
struct Span {
    int64_t first_row;       // of the flat batch
    int64_t rows;
    int64_t start;           // the position of the first row: so many tokens are cached already
    const int32_t* blocks;   // the sequence's block table
};

struct Heads {
    int32_t q_heads, kv_heads, head_dim;
    float scale;             // of the scores: 1 / sqrt(head_dim)
};

// out[row, h * head_dim ...] = softmax(q k^T * scale) v over the keys at positions 0 .. start + row
struct Attention {
    Heads heads;
    CacheLayer cache;
    const float* q;          // [rows, q_stride]: q_heads * head_dim floats, rotated
    int64_t q_stride;
    float* out;
    int64_t out_stride;
};

// Some parts of an attention: the rows [first, first + count) of a span, one key-value head, and the keys of some stretches of
// positions. Stretches begin at multiples of kStretch positions, wherever the rows are; each is a part for itself.
constexpr int64_t kStretch = 512;
struct AttentionParts {
    const Span* span;
    int64_t first, count;    // rows of the span
    int32_t kv_head;
    int64_t stretch, stretch_end;  // keys at positions stretch * kStretch .. stretch_end * kStretch - 1
    const AttentionParts* next;    // what this thread does then, or null: its first keys are asked for
};

struct TrainKernels;  // train/train.h

struct Kernels {
    const char* name;

    // Any rows [row_begin, row_end) against any blocks [block_begin, block_end). `scratch` is this thread's own.
    void (*matmul)(const Matmul&, int64_t row_begin, int64_t row_end, int64_t block_begin, int64_t block_end, void* scratch);
    // Bytes of scratch that `matmul` wants for a matrix.
    size_t (*matmul_scratch)(const Matrix&);

    // Writes the forms that are present in `to` for one row of floats x[columns]; the padding becomes zero. A value that is
    // not finite makes the scale of its group NaN.
    void (*quantize)(const float* x, int64_t columns, const Activations& to, int64_t row);
    // out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]
    void (*rms_norm)(const float* x, const float* weight, float eps, int64_t columns, float* out);
    // out[i] = silu(gate[i]) * up[i]
    void (*swiglu)(const float* gate, const float* up, int64_t columns, float* out);
    // Rotates heads x[heads, head_dim] in place by cos, sin [head_dim / 2]; dimension i pairs with i + head_dim / 2.
    void (*rotate)(float* x, int32_t heads, int32_t head_dim, const float* cos, const float* sin);
    // Stores the key and the value [kv_heads, head_dim] of one token.
    void (*store)(const CacheLayer&, const Heads&, int64_t slot, const float* k, const float* v);

    // Each part's maximum, sum of exponentials, and weighted values (not divided by the sum), for `count` rows times the query
    // heads of the key-value head: out[part][row * group + head] = {maximum, sum, value[head_dim]}, head_dim + 2 floats each.
    void (*attention_parts)(const Attention&, const AttentionParts&, float* out, void* scratch);
    size_t (*attention_scratch)(const Heads&, const CacheLayer&);
    // Puts the parts of one row and query head together, in the order of the stretches, and divides.
    void (*attention_join)(const float* const* parts, int64_t count, int32_t head_dim, float* out);

    // values[0] = the largest x, *index its first place.
    void (*argmax)(const float* x, int64_t count, float* value, int64_t* index);
    // out[columns]: the largest x[rows, columns] of each column; columns is a multiple of 16. NaN anywhere: any number.
    void (*column_maxima)(const float* x, int64_t rows, int64_t columns, float* out);
    // The places of all x >= bound, in order, as far as there is room; how many there are.
    int64_t (*find_from)(const float* x, int64_t count, float bound, int32_t* places, int64_t room);
    // The sum of e^((x - best) * factor).
    double (*exp_sum)(const float* x, int64_t count, float best, float factor);

    bool reads_pairs;        // caches may be CacheType::bf16_pairs
    const TrainKernels* train;
};

}  // namespace corral
