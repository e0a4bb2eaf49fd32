/* The C interface of Corral's native CPU kernels, called from Python by ctypes (src/corral/kernels/).
 *
 * Nothing here throws. Strings are UTF-8, belong to the library, and stay valid unless said otherwise. */
#pragma once
#include <stdint.h>

#if defined(_WIN32)
#define CORRAL_API __declspec(dllexport)
#else
#define CORRAL_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Goes up with every change that breaks a caller: of a function here, or of a structure that is passed.
 * src/corral/kernels/library.py holds the number that it speaks. */
#define CORRAL_ABI_VERSION 2
CORRAL_API int32_t corral_abi_version(void);

/* The kernels of one instruction set: generic, avx2, avx512vnni or avx512bf16. */
typedef struct corral_kernels corral_kernels;
/* The instruction sets that this build has and this machine runs, best first, with blanks between. */
CORRAL_API const char* corral_isas(void);
/* The kernels called `isa`, or the best ones if that is null or empty. Null, and a sentence in `error`, if this machine does
 * not run them or nothing is called so; the sentence is valid until the thread's next call. */
CORRAL_API const corral_kernels* corral_pick(const char* isa, const char** error);
CORRAL_API const char* corral_kernels_name(const corral_kernels* kernels);
/* Whether these kernels take caches of CacheType::bf16_pairs (native/src/kernels.h). */
CORRAL_API int32_t corral_kernels_read_pairs(const corral_kernels* kernels);

/* How many threads pay: physical cores that this process may run on, within its CPU quota. */
CORRAL_API int32_t corral_cores(void);

/* A pool of threads, the caller's included. Null if they cannot be started. */
typedef struct corral_pool corral_pool;
CORRAL_API corral_pool* corral_pool_open(int32_t threads);
CORRAL_API int32_t corral_pool_threads(const corral_pool* pool);
/* Waits for a run that is under way and ends the threads; later runs are refused. May be called again. */
CORRAL_API void corral_pool_close(corral_pool* pool);
/* Closes, and gives the memory back. No other call may be under way or follow. */
CORRAL_API void corral_pool_free(corral_pool* pool);

/* A network as a list of operations; `spec` and `batch` point to the structures of native/src/program.h. What the spec refers to
 * is copied but for the weights and the cache, which must outlive the program. Null if there is no memory for it. */
typedef struct corral_program corral_program;
CORRAL_API corral_program* corral_program_create(const void* spec, const corral_kernels* kernels);
enum { CORRAL_DONE = 0, CORRAL_CLOSED = 1, CORRAL_OUT_OF_MEMORY = 2 };
/* A step of a program: `out` takes the rows of its result, `best` and `best_ids` the largest number of each row and its first
 * place, NaN being the largest; or both are null. */
typedef struct {
    corral_program* program;
    const void* batch;
    float* out;
    float* best;
    int64_t* best_ids;
} corral_step;
/* Runs steps one after the other: the input of one may be what another has put out. One call at a time for a program. */
CORRAL_API int32_t corral_run_steps(const corral_step* steps, int32_t count, corral_pool* pool);
CORRAL_API void corral_program_free(corral_program* program);

/* The best of each row [columns] of logits: all places whose number reaches the one that is k-th among the maxima of `folds`
 * columns, into which the row is folded, k being the row's rank; `lowest` at least. Places are in order, as many as there is
 * room for; `counts` says how many there are. `folds` is a multiple of 16 and at most `columns`. */
typedef struct {
    const float* logits;
    int64_t rows, columns, folds;
    const int64_t* ranks;
    float lowest;
    int64_t room;
    float* bounds;
    int64_t* counts;
    int32_t* places;
} corral_best;
CORRAL_API int32_t corral_find_best(const corral_kernels* kernels, corral_pool* pool, const corral_best* call);
/* Of each row the sum of e^((logit - best) * factor). */
CORRAL_API int32_t corral_exp_sums(const corral_kernels* kernels, corral_pool* pool, const float* logits, int64_t rows,
                                   int64_t columns, const float* best, const float* factors, float* sums);

/* Training: forward and backward passes over tensors of float or bfloat16, which lie in one piece unless a stride is given.
 * Sums are in float. Each returns CORRAL_DONE or why not, and waits for its turn with the pool. */
enum { CORRAL_F32 = 0, CORRAL_BF16 = 1 };

/* out[rows, columns] = left[rows, steps] right[steps, columns] (+ out). A factor that is turned lies in memory the other way:
 * left as [steps, rows], right as [columns, steps]. Strides count elements from one line in memory to the next. */
typedef struct {
    int32_t type, left_turned, right_turned, add;
    int64_t rows, columns, steps;
    const void *left, *right;
    void* out;
    int64_t left_stride, right_stride, out_stride;
} corral_product;
CORRAL_API int32_t corral_multiply(const corral_kernels* kernels, corral_pool* pool, const corral_product* call);

/* Attention over documents side by side, causal in each: document i has the rows bounds[i] .. bounds[i + 1] - 1. Queries and what
 * is as large are [rows, q_heads, head_dim], keys and values [rows, kv_heads, head_dim]. lse [rows, q_heads] takes the logarithms
 * of the sums of exponentials; the backward pass reads it and `out`. */
typedef struct {
    int32_t type, q_heads, kv_heads, head_dim;
    float scale;
    int64_t documents;
    const int64_t* bounds;
    const void *q, *k, *v;
    void* out;
    float* lse;
    const void* out_grad;
    void *q_grad, *k_grad, *v_grad;
} corral_packed_attention;
CORRAL_API int32_t corral_attend_packed(const corral_kernels* kernels, corral_pool* pool, const corral_packed_attention* call);
CORRAL_API int32_t corral_attend_packed_backward(const corral_kernels* kernels, corral_pool* pool,
                                                 const corral_packed_attention* call);

/* out = weight * (x * scale), scale = 1 / sqrt(mean(x^2) + eps) of each row, kept in `scales`;
 * weight_grad [columns] is null if it is not wanted. */
typedef struct {
    int32_t type;
    float eps;
    int64_t rows, columns;
    const void *x, *weight;
    void* out;
    float* scales;
    const void* out_grad;
    void *x_grad, *weight_grad;
} corral_norm;
CORRAL_API int32_t corral_norm_rows(const corral_kernels* kernels, corral_pool* pool, const corral_norm* call);
CORRAL_API int32_t corral_norm_rows_backward(const corral_kernels* kernels, corral_pool* pool, const corral_norm* call);

/* out = silu(gate) * up, of `count` elements. */
typedef struct {
    int32_t type;
    int64_t count;
    const void *gate, *up;
    void* out;
    const void* out_grad;
    void *gate_grad, *up_grad;
} corral_gate;
CORRAL_API int32_t corral_gate_elements(const corral_kernels* kernels, corral_pool* pool, const corral_gate* call);
CORRAL_API int32_t corral_gate_elements_backward(const corral_kernels* kernels, corral_pool* pool, const corral_gate* call);

/* Heads x [rows, heads, head_dim] rotated by cos and sin [rows, head_dim / 2], or back: which is the backward pass. */
typedef struct {
    int32_t type, heads, head_dim, back;
    int64_t rows;
    const void* x;
    const float *cos, *sin;
    void* out;
} corral_rotation;
CORRAL_API int32_t corral_rotate_heads(const corral_kernels* kernels, corral_pool* pool, const corral_rotation* call);

/* Of logits [rows, columns] the logarithm of each target's probability, the logarithm of the sum of exponentials
 * (`normalizers`), and whether the target is the first of the largest. With `coefficients`, each row of logits becomes
 * coefficient * (softmax - one at the target), there and in `corral_logits_gradient`, which reads the normalizers. */
typedef struct {
    int32_t type;
    int64_t rows, columns;
    void* logits;
    const int64_t* targets;
    float *logprobs, *normalizers;
    uint8_t* correct;
    const float* coefficients;
} corral_token_loss;
CORRAL_API int32_t corral_token_logprobs(const corral_kernels* kernels, corral_pool* pool, const corral_token_loss* call);
CORRAL_API int32_t corral_logits_gradient(const corral_kernels* kernels, corral_pool* pool, const corral_token_loss* call);

#ifdef __cplusplus
}
#endif
