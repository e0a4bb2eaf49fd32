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

#ifdef __cplusplus
}
#endif
