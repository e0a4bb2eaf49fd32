// Training's calls, shared by the threads of a pool.
#include "train.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <numeric>
#include <vector>

#include "../kernels.h"
#include "../pool.h"

namespace corral {
namespace {

const TrainKernels& of(const corral_kernels* handle) { return *reinterpret_cast<const Kernels*>(handle)->train; }

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory on 64 bytes, not filled.
class Memory {
public:
    explicit Memory(size_t bytes) { reserve(bytes); }
    ~Memory() { std::free(data_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    void* get() const { return data_; }

    // At least so many bytes. What was in it is lost.
    void reserve(size_t bytes) {
        if (bytes <= bytes_) return;
        std::free(data_);
        bytes_ = 0;
        data_ = std::aligned_alloc(64, divide_up(bytes, 64) * 64);
        if (data_ == nullptr) throw std::bad_alloc();
        bytes_ = bytes;
    }

private:
    void* data_ = nullptr;
    size_t bytes_ = 0;
};

// A thread's own, as large as the largest call has wanted it. To ask the system for it at each call would cost its pages anew.
void* own_memory(size_t bytes) {
    static thread_local Memory memory(0);
    memory.reserve(bytes);
    return memory.get();
}

// Stages of work, each done by all threads before the next begins: body(stage, unit, scratch) for every unit of a stage.
template <typename Body> int32_t run(corral_pool* pool, const std::vector<int64_t>& stages, size_t scratch, const Body& body) {
    struct Work {
        const Body& body;
        const std::vector<int64_t>& stages;
        const size_t scratch;
        Pool& pool;
        std::vector<std::atomic<int64_t>> next;
        std::atomic<bool> failed{false};
    } work{body, stages, scratch, *reinterpret_cast<Pool*>(pool), std::vector<std::atomic<int64_t>>(stages.size())};
    const auto task = [](void* context, int) {
        Work& own = *static_cast<Work*>(context);
        void* scratch = nullptr;
        try {
            scratch = own_memory(own.scratch);
        } catch (...) {
            own.failed = true;
        }
        for (size_t stage = 0; stage < own.stages.size(); ++stage) {
            if (stage > 0) own.pool.barrier();
            for (int64_t unit; !own.failed && (unit = own.next[stage].fetch_add(1)) < own.stages[stage];)
                own.body(stage, unit, scratch);
        }
    };
    if (!work.pool.run(task, &work)) return CORRAL_CLOSED;
    return work.failed ? CORRAL_OUT_OF_MEMORY : CORRAL_DONE;
}

// Memory that there is none of ends here.
template <typename Body> int32_t guarded(const Body& body) {
    try {
        return body();
    } catch (...) {
        return CORRAL_OUT_OF_MEMORY;
    }
}

// Calls body(begin, end) for pieces of [0, count) of a size.
template <typename Body> int32_t each(corral_pool* pool, int64_t count, int64_t size, const Body& body) {
    return guarded([&] {
        return run(pool, {divide_up(count, size)}, 0,
                   [&](size_t, int64_t unit, void*) { body(unit * size, std::min(count, (unit + 1) * size)); });
    });
}

// Documents from the longest to the shortest, so that the last one to be taken keeps no other thread waiting for long.
std::vector<int64_t> longest_first(const corral_packed_attention& call) {
    std::vector<int64_t> order(call.documents);
    std::iota(order.begin(), order.end(), 0);
    const auto length = [&](int64_t i) { return call.bounds[i + 1] - call.bounds[i]; };
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return length(a) > length(b); });
    return order;
}

constexpr int64_t kTurns = 8;          // of a thread, at least
constexpr int64_t kApartRows = 320;

// How a product is shared: parts of the rows, and within them panels, each packed anew for each part.
struct Parts {
    const int64_t rows, panels;
    int64_t part;  // rows of one

    Parts(const corral_product& call, int threads)
        : rows(call.rows), panels(divide_up(call.columns, kProductColumns)) {
        constexpr int64_t kLargest = 1280, kTile = 5;
        const int64_t count = std::max(divide_up(kTurns * threads, panels), divide_up(rows, kLargest));
        part = std::min(rows, divide_up(divide_up(rows, count), kTile) * kTile);
    }
    int64_t count() const { return divide_up(rows, part); }
    int64_t begin(int64_t i) const { return i * part; }
    int64_t end(int64_t i) const { return std::min(rows, (i + 1) * part); }
};

void take_panel(const TrainKernels& k, const corral_product& call, const uint32_t* left, int64_t row, int64_t row_end,
                int64_t panel, void* scratch) {
    const int64_t column = panel * kProductColumns;
    k.product(call, left, row, row_end, column, std::min(column + kProductColumns, call.columns), scratch);
}

constexpr int64_t kLineUnit = 16;  // rows: any number of so many

constexpr int64_t kElements = 16384;  // elements that a thread takes at a time

}  // namespace
}  // namespace corral

using namespace corral;

// The left factor's words are made first, and all threads read them.
static int32_t multiply_shared(const TrainKernels& k, corral_pool* pool, const corral_product& call, const Parts& parts) {
    constexpr int64_t kRows = 32;
    const Memory left(k.product_left(call, call.rows));
    uint32_t* words = static_cast<uint32_t*>(left.get());
    const int64_t line = words == nullptr ? 0 : k.product_left(call, kLineUnit) / sizeof(uint32_t) / kLineUnit;
    return run(pool, {words == nullptr ? 0 : divide_up(call.rows, kRows), parts.count() * parts.panels},
               k.product_scratch(call, parts.part), [&](size_t stage, int64_t unit, void* scratch) {
                   if (stage == 0) {
                       const int64_t row = unit * kRows;
                       return k.product_prepare(call, row, std::min(row + kRows, call.rows), words + row * line);
                   }
                   const int64_t part = unit / parts.panels, row = parts.begin(part);
                   take_panel(k, call, words + row * line, row, parts.end(part), unit % parts.panels, scratch);
               });
}

// Many rows: each thread makes the words of its own rows, and multiplies them while they are in its caches.
static int32_t multiply_apart(const TrainKernels& k, corral_pool* pool, const corral_product& call) {
    const int64_t units = divide_up(call.rows, kApartRows);
    const size_t own = divide_up(k.product_left(call, kApartRows), 64) * 64;
    return run(pool, {units}, own + k.product_scratch(call, kApartRows), [&](size_t, int64_t unit, void* scratch) {
        const int64_t row = unit * kApartRows, end = std::min(row + kApartRows, call.rows);
        uint32_t* words = static_cast<uint32_t*>(scratch);
        k.product_prepare(call, row, end, words);
        for (int64_t panel = 0; panel < divide_up(call.columns, kProductColumns); ++panel)
            take_panel(k, call, words, row, end, panel, static_cast<uint8_t*>(scratch) + own);
    });
}

int32_t corral_multiply(const corral_kernels* kernels, corral_pool* pool, const corral_product* call) {
    return guarded([&] {
        constexpr size_t kLarge = 4 << 20;
        const TrainKernels& k = of(kernels);
        const int threads = reinterpret_cast<Pool*>(pool)->threads();
        const bool apart = k.product_left(*call, call->rows) > kLarge && call->rows >= kTurns * threads * kApartRows;
        return apart ? multiply_apart(k, pool, *call) : multiply_shared(k, pool, *call, Parts(*call, threads));
    });
}

int32_t corral_attend_packed(const corral_kernels* kernels, corral_pool* pool, const corral_packed_attention* call) {
    return guarded([&] {
        const TrainKernels& k = of(kernels);
        const Memory shared(k.attention_shared(*call, false));
        struct Unit {
            int64_t document, first;
        };
        std::vector<Unit> units;  // later queries see more keys: they come first
        for (const int64_t document : longest_first(*call)) {
            const int64_t length = call->bounds[document + 1] - call->bounds[document];
            for (int64_t tile = divide_up(length, kAttentionTile); tile-- > 0;) units.push_back({document, tile * kAttentionTile});
        }
        const int64_t heads = call->kv_heads, count = units.size();
        return run(pool, {call->documents * heads, count * heads}, k.attention_scratch(*call, false),
                   [&](size_t stage, int64_t unit, void* scratch) {
                       const auto head = static_cast<int32_t>(unit % heads);
                       if (stage == 0) return k.attention_prepare(*call, false, unit / heads, head, shared.get());
                       const Unit& own = units[unit / heads];
                       k.attention(*call, own.document, head, own.first, shared.get(), scratch);
                   });
    });
}

int32_t corral_attend_packed_backward(const corral_kernels* kernels, corral_pool* pool, const corral_packed_attention* call) {
    return guarded([&] {
        const TrainKernels& k = of(kernels);
        const Memory shared(k.attention_shared(*call, true));
        const std::vector<int64_t> order = longest_first(*call);
        const int64_t heads = call->kv_heads, units = call->documents * heads;
        return run(pool, {units, units}, k.attention_scratch(*call, true), [&](size_t stage, int64_t unit, void* scratch) {
            const auto head = static_cast<int32_t>(unit % heads);
            if (stage == 0) return k.attention_prepare(*call, true, unit / heads, head, shared.get());
            k.attention_backward(*call, order[unit / heads], head, shared.get(), scratch);
        });
    });
}

int32_t corral_norm_rows(const corral_kernels* kernels, corral_pool* pool, const corral_norm* call) {
    return each(pool, call->rows, std::max<int64_t>(1, kElements / call->columns),
                [&](int64_t begin, int64_t end) { of(kernels).norm(*call, begin, end); });
}

int32_t corral_norm_rows_backward(const corral_kernels* kernels, corral_pool* pool, const corral_norm* call) {
    return guarded([&] {
        const TrainKernels& k = of(kernels);
        const int64_t pieces = divide_up(call->rows, kWeightRows), columns = call->columns;
        const Memory memory(call->weight_grad == nullptr ? 0 : pieces * columns * sizeof(float));
        float* partials = static_cast<float*>(memory.get());
        const int64_t width = 256;
        return run(pool, {pieces, partials == nullptr ? 0 : divide_up(columns, width)}, 0, [&](size_t stage, int64_t unit, void*) {
            if (stage == 1) return k.norm_weight(*call, partials, pieces, unit * width, std::min(columns, (unit + 1) * width));
            k.norm_backward(*call, unit * kWeightRows, std::min(call->rows, (unit + 1) * kWeightRows),
                            partials == nullptr ? nullptr : partials + unit * columns);
        });
    });
}

int32_t corral_gate_elements(const corral_kernels* kernels, corral_pool* pool, const corral_gate* call) {
    return each(pool, call->count, kElements, [&](int64_t begin, int64_t end) { of(kernels).gate(*call, begin, end); });
}

int32_t corral_gate_elements_backward(const corral_kernels* kernels, corral_pool* pool, const corral_gate* call) {
    return each(pool, call->count, kElements, [&](int64_t begin, int64_t end) { of(kernels).gate_backward(*call, begin, end); });
}

int32_t corral_rotate_heads(const corral_kernels* kernels, corral_pool* pool, const corral_rotation* call) {
    const int64_t width = int64_t{call->heads} * call->head_dim;
    return each(pool, call->rows, std::max<int64_t>(1, kElements / width),
                [&](int64_t begin, int64_t end) { of(kernels).rotate(*call, begin, end); });
}

int32_t corral_token_logprobs(const corral_kernels* kernels, corral_pool* pool, const corral_token_loss* call) {
    return each(pool, call->rows, 1, [&](int64_t row, int64_t) { of(kernels).token_logprob(*call, row); });
}

int32_t corral_logits_gradient(const corral_kernels* kernels, corral_pool* pool, const corral_token_loss* call) {
    return each(pool, call->rows, 1, [&](int64_t row, int64_t) { of(kernels).logits_gradient(*call, row); });
}
