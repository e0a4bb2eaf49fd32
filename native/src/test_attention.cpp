// Attention and the kernels of single rows, called one at a time: for tests and benchmarks, which come from Python.
#include <vector>

#include "corral_native.h"
#include "kernels.h"

using namespace corral;

namespace {

const Kernels& of(const corral_kernels* handle) { return *reinterpret_cast<const Kernels*>(handle); }

void* aligned(std::vector<uint8_t>& memory, size_t bytes) {
    if (memory.size() < bytes + 64) memory.resize(bytes + 64);
    return memory.data() + (-reinterpret_cast<uintptr_t>(memory.data()) & 63);
}

}  // namespace

extern "C" {

// One layer's cache and one sequence's queries; `part_rows` rows of them go through `attention_parts` at a time.
struct corral_test_attention_call {
    int32_t q_heads, kv_heads, head_dim;
    float scale;
    int32_t cache_type, block_size;
    int64_t slots;
    uint8_t* data;
    uint16_t* scales;
    const int32_t* blocks;
    const float* q;  // [rows, q_heads, head_dim]
    float* out;      // the same
    int64_t rows, start, part_rows;
};

CORRAL_API void corral_test_attention(const corral_kernels* handle, const corral_test_attention_call* call) {
    const Kernels& kernels = of(handle);
    const Heads heads{call->q_heads, call->kv_heads, call->head_dim, call->scale};
    const CacheLayer cache{static_cast<CacheType>(call->cache_type), call->data, call->scales, call->slots, call->block_size};
    const int64_t stride = int64_t{call->q_heads} * call->head_dim, group = call->q_heads / call->kv_heads;
    const Attention attention{heads, cache, call->q, stride, call->out, stride};
    const Span span{0, call->rows, call->start, call->blocks};
    const int64_t stretches = (call->start + call->rows + kStretch - 1) / kStretch, width = call->head_dim + 2;

    static thread_local std::vector<uint8_t> memory;
    static thread_local std::vector<float> parts;
    void* scratch = aligned(memory, kernels.attention_scratch(heads, cache));
    parts.resize(stretches * call->part_rows * group * width);
    std::vector<const float*> own(stretches);
    for (int32_t head = 0; head < call->kv_heads; ++head)
        for (int64_t first = 0; first < call->rows; first += call->part_rows) {
            const int64_t count = call->rows - first < call->part_rows ? call->rows - first : call->part_rows;
            const int64_t seen = (call->start + first + count - 1) / kStretch + 1;
            kernels.attention_parts(attention, {&span, first, count, head, 0, seen, nullptr}, parts.data(), scratch);
            for (int64_t i = 0; i < count * group; ++i) {
                const int64_t row = first + i / group, used = (call->start + row) / kStretch + 1;
                for (int64_t s = 0; s < used; ++s) own[s] = parts.data() + (s * count * group + i) * width;
                kernels.attention_join(own.data(), used, call->head_dim,
                                       call->out + row * stride + (head * group + i % group) * call->head_dim);
            }
        }
}

// Stores keys and values [tokens, kv_heads, head_dim] at `slots_of` [tokens].
CORRAL_API void corral_test_store(const corral_kernels* handle, const corral_test_attention_call* call, int64_t tokens,
                                  const int64_t* slots_of, const float* k, const float* v) {
    const Heads heads{call->q_heads, call->kv_heads, call->head_dim, call->scale};
    const CacheLayer cache{static_cast<CacheType>(call->cache_type), call->data, call->scales, call->slots, call->block_size};
    const int64_t width = int64_t{call->kv_heads} * call->head_dim;
    for (int64_t i = 0; i < tokens; ++i) of(handle).store(cache, heads, slots_of[i], k + i * width, v + i * width);
}

CORRAL_API void corral_test_rms_norm(const corral_kernels* handle, const float* x, const float* weight, float eps, int64_t columns,
                                     float* out) {
    of(handle).rms_norm(x, weight, eps, columns, out);
}

CORRAL_API void corral_test_swiglu(const corral_kernels* handle, const float* gate, const float* up, int64_t columns, float* out) {
    of(handle).swiglu(gate, up, columns, out);
}

CORRAL_API void corral_test_rotate(const corral_kernels* handle, float* x, int32_t heads, int32_t head_dim, const float* cos,
                                   const float* sin) {
    of(handle).rotate(x, heads, head_dim, cos, sin);
}

}  // extern "C"
