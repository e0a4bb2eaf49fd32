// One run of a program: who does what.
#pragma once
#include <algorithm>
#include <atomic>
#include <vector>

#include "program.h"

namespace corral {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Some rows of a span against one key-value head.
struct AttentionUnit {
    const Span* span;
    int64_t first, count;    // rows of the span
    int32_t kv_head;
    int64_t stretches;       // that its last row sees
    float* parts;            // [stretches, count * group, head_dim + 2], where threads share the stretches
};

class Step {
public:
    Step(Program& program, Pool& pool, const Batch& batch, const Result& to);

    // False if the pool is closed.
    bool run();
    int64_t rows(int buffer) const { return selected_[buffer] ? batch_.num_wanted : batch_.rows; }

private:
    struct Share {           // of one thread in one phase
        int thread;
        std::atomic<int64_t>* next;
        uint8_t* scratch;
    };
    using Phase = void (Step::*)(const Op&, Share&);

    void plan_rows();
    void plan_attention();
    void reserve_scratch();
    void work(int thread);
    Ahead weights_after(size_t phase, int thread) const;
    std::pair<int64_t, int64_t> own_blocks(const Matrix& matrix, int thread) const;
    template <typename Body> void each(Share& share, int64_t count, int64_t chunk, Body body);

    void rotation(const Op&, Share&);
    void embed(const Op&, Share&);
    void norm(const Op&, Share&);
    void matmul(const Op&, Share&);
    void rotate(const Op&, Share&);
    void attend(const Op&, Share&);
    void join(const Op&, Share&);
    void swiglu(const Op&, Share&);
    void select(const Op&, Share&);
    void lora_down(const Op&, Share&);
    void lora_up(const Op&, Share&);
    void input(const Op&, Share&);
    void best(const Op&, Share&);
    void join_best();

    float* floats(Buffer& buffer, int64_t row, Share& share) const;
    void forms(Buffer& buffer, int64_t row, float* x);
    void multiply(const Matmul& call, int64_t rows, Share& share);
    void attend_stretches(const Op&, const AttentionUnit&, int64_t begin, int64_t end, const AttentionUnit* next,
                          float* parts, uint8_t* scratch);
    void join_rows(const Op&, const AttentionUnit&, const float* parts);
    Attention attention(const Op&);
    std::pair<int64_t, int64_t> lora_rows(const Op&, int64_t span) const;
    const AdapterSite* adapter(const Op&, int64_t span) const;

    Program& program_;
    Pool& pool_;
    const Batch& batch_;
    const Result& to_;
    const Kernels& kernels_;
    int threads_;
    std::vector<bool> selected_;             // buffers with a row for each wanted row only
    std::vector<AttentionUnit> units_;
    std::vector<std::pair<int32_t, int32_t>> stretches_;  // (unit, stretch) where threads share the stretches, else empty
    int64_t part_floats_ = 0;                // the most that a unit's parts take
    std::vector<std::pair<float, int64_t>> best_;  // [rows of the result][pieces]
    int64_t rank_ = 0;                       // the largest of the step's adapters
    struct Phased {
        Phase phase;
        const Op* op;
    };
    std::vector<Phased> phases_;
    std::vector<std::atomic<int64_t>> next_;  // by phase: work that is not taken yet
};

// Takes chunks of [0, count) until none is left.
template <typename Body> void Step::each(Share& share, int64_t count, int64_t chunk, Body body) {
    if (count <= 0) return;
    for (;;) {
        const int64_t begin = share.next->fetch_add(chunk, std::memory_order_relaxed);
        if (begin >= count) return;
        body(begin, std::min(count, begin + chunk));
    }
}

}  // namespace corral
