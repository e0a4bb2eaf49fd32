// A network as a list of operations over buffers, made once; a step runs the whole list in one call.
//
// Buffers hold one row per token of the step's flat batch. Operations run in order, each shared among the threads of the
// pool, with a barrier after it. All structures here are plain data that Python mirrors field by field
// (src/corral/kernels/structures.py).
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "matrix.h"
#include "pool.h"

namespace corral {

// Which forms of its rows a buffer keeps: those that the operations want that read it. What adapters read is kept too.
enum Forms : int32_t { kFloat = 1, kBfloat16 = 2, kCodes16 = 4, kCodes32 = 8 };

struct BufferSpec {
    int64_t columns;
    int32_t forms;
};

enum class OpKind : int32_t {
    embed = 0,      // out = rows of `matrix`, one for each token
    norm = 1,       // out = rms_norm(in) * weights, in the forms of `out`
    matmul = 2,     // out's columns from `column` on (+)= in x matrix (+ weights: the bias)
    rotate = 3,     // rotates the queries and keys in `out` [q | k | v] and stores keys and values in layer `layer`
    attend = 4,     // out = attention of the queries in `in` over layer `layer`
    swiglu = 5,     // out = silu(in's first half) * in's second half
    select = 6,     // out = the wanted rows of `in`; later operations on `out` run over the wanted rows
    lora = 7,       // out's columns from `column` on += the low-rank product of the row's adapter at site `site`, of `in`
    input = 8,      // out = the rows that the caller gives
};

struct Op {
    OpKind kind;
    int32_t in, out;         // buffers
    int32_t matrix;          // index
    int32_t layer;
    int32_t add;             // matmul: add to `out` instead of writing it
    int32_t site;
    int32_t column;
    float eps;
    int32_t unused;
    const float* weights;
};

struct ProgramSpec {
    Heads heads;
    int32_t exact;
    const float* inverse_frequencies;   // [head_dim / 2]; null in a program without attention
    const Matrix* const* matrices;
    const CacheLayer* layers;
    const BufferSpec* buffers;
    const Op* ops;
    int32_t num_matrices, num_layers, num_buffers, num_ops;
    int32_t result;                     // the buffer that a run gives back
    int32_t unused;
};

// A low-rank adapter at the sites of a program; `up` has the scale multiplied in. Sites without one have null matrices.
struct AdapterSite {
    const Matrix* down;      // [rank, in]
    const Matrix* up;        // [out, rank]
};

struct Batch {
    int64_t rows;
    const int64_t* tokens;              // [rows]
    const int64_t* positions;           // [rows]
    const float* input;                 // for `input`: [rows, columns]
    const Span* spans;
    const AdapterSite* const* adapters; // [num_spans], each null or [sites]; null without any
    const int64_t* wanted;              // rows
    int64_t num_spans;
    int64_t num_wanted;
};

// Where a run writes: the rows of the result; and of each, unless null, the largest number and its first place.
struct Result {
    float* rows;
    float* best;
    int64_t* best_ids;
};

// Rows of activations, in the forms that are wanted of them.
class Buffer {
public:
    explicit Buffer(const BufferSpec& spec);

    void reserve(int64_t rows);
    float* row(int64_t index) { return (lent_ == nullptr ? f32.data() : lent_) + index * padded; }
    // From now on rows are kept there, in memory of the caller's.
    void lend(float* rows) { lent_ = rows; }
    // The forms with codes in groups of 16 or 32 columns.
    Activations activations(int group);

    int64_t columns;
    int64_t padded;  // floats from one row to the next; what is beyond `columns` is zero
    int32_t forms;

private:
    struct Codes8 {
        std::vector<int8_t> codes;
        std::vector<float> scales;
        std::vector<int32_t> sums;
    };
    int64_t rows_ = 0;
    float* lent_ = nullptr;
    std::vector<float> f32;
    std::vector<uint16_t> bf16;
    Codes8 codes[2];  // in groups of 16 and of 32
};

class Program {
public:
    Program(const ProgramSpec& spec, const Kernels& kernels);

    // Writes the result's rows [rows or wanted, columns]. One run at a time. False if the pool is closed.
    bool run(Pool& pool, const Batch& batch, const Result& to);

private:
    friend class Step;

    Heads heads_;
    bool exact_;
    std::vector<float> frequencies_;
    std::vector<Matrix> matrices_;
    std::vector<CacheLayer> layers_;
    std::vector<Op> ops_;
    std::vector<Buffer> buffers_;
    int32_t result_;
    const Kernels& kernels_;

    // Memory of a step that the next one uses again.
    std::vector<float> rotation_;                // [rows, head_dim]: cosines, then sines
    std::vector<float> low_rank_;                // [rows, rank]
    std::vector<float> parts_;                   // of an attention that is split along the keys
    std::vector<std::vector<uint8_t>> scratch_;  // by thread
};

}  // namespace corral
