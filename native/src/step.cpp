#include "step.h"

#include <algorithm>
#include <cmath>

#include "unpack.h"

namespace corral {
namespace {

constexpr int64_t kFewRows = 8;       // up to here a matrix product is bound by reading the weights
constexpr int64_t kAheadBytes = 256 << 10;  // of weights that are asked for early: a part of the second cache
constexpr int64_t kPanelBlocks = 12;  // of a larger product: a share of work
constexpr int64_t kPanelRows = 256;
constexpr int64_t kBestPiece = 8192;  // columns

}  // namespace

Step::Step(Program& program, Pool& pool, const Batch& batch, const Result& to)
    : program_(program), pool_(pool), batch_(batch), to_(to), kernels_(program.kernels_), threads_(pool.threads()) {
    static constexpr struct {
        OpKind kind;
        Phase first, second;
    } kPhases[] = {
        {OpKind::embed, &Step::embed, nullptr},     {OpKind::norm, &Step::norm, nullptr},
        {OpKind::matmul, &Step::matmul, nullptr},   {OpKind::rotate, &Step::rotate, nullptr},
        {OpKind::attend, &Step::attend, &Step::join}, {OpKind::swiglu, &Step::swiglu, nullptr},
        {OpKind::select, &Step::select, nullptr},   {OpKind::lora, &Step::lora_down, &Step::lora_up},
        {OpKind::input, &Step::input, nullptr},
    };
    static const Op kNoOp{};
    plan_rows();
    if (!program_.layers_.empty()) {
        plan_attention();
        phases_.push_back({&Step::rotation, &kNoOp});
    }
    for (const Op& op : program_.ops_) {
        if (op.kind == OpKind::lora && batch_.adapters == nullptr) continue;
        const auto& phases = kPhases[static_cast<int>(op.kind)];
        phases_.push_back({phases.first, &op});
        if (phases.second != nullptr) phases_.push_back({phases.second, &op});
    }
    if (to_.best != nullptr) phases_.push_back({&Step::best, &kNoOp});
    next_ = std::vector<std::atomic<int64_t>>(phases_.size());
    reserve_scratch();
}

bool Step::run() {
    if (!pool_.run([](void* step, int thread) { static_cast<Step*>(step)->work(thread); }, this)) return false;
    if (to_.best != nullptr) join_best();
    return true;
}

void Step::work(int thread) {
    uint8_t* scratch = program_.scratch_[thread].data();
    scratch += -reinterpret_cast<uintptr_t>(scratch) % 64;
    Ahead ahead;
    for (size_t i = 0; i < phases_.size(); ++i) {
        Share share{thread, &next_[i], scratch};
        (this->*phases_[i].phase)(*phases_[i].op, share);
        if (i == 0 || phases_[i].phase == &Step::matmul) ahead = weights_after(i, thread);
        pool_.barrier(ahead);
    }
}

// The first of the weights that a thread reads when a matrix product comes next that is bound by that.
Ahead Step::weights_after(size_t phase, int thread) const {
    while (++phase < phases_.size() && phases_[phase].phase != &Step::matmul) {}
    if (phase == phases_.size() || rows(phases_[phase].op->in) > kFewRows) return {};
    const Matrix& matrix = program_.matrices_[phases_[phase].op->matrix];
    const auto [begin, end] = own_blocks(matrix, thread);
    const uint8_t* first = matrix.data + std::min<int64_t>(matrix.scales_at, 0);
    return {first + begin * matrix.block_bytes, first + std::min(end * matrix.block_bytes, begin * matrix.block_bytes + kAheadBytes)};
}

// A thread's blocks of a product of few rows: one piece, for a stream that is read from end to end is what memory is fast at.
std::pair<int64_t, int64_t> Step::own_blocks(const Matrix& matrix, int thread) const {
    const int64_t blocks = matrix.blocks(), each = divide_up(blocks, threads_);
    return {std::min(blocks, thread * each), std::min(blocks, (thread + 1) * each)};
}

void Step::plan_rows() {
    selected_.assign(program_.buffers_.size(), false);
    for (const Op& op : program_.ops_) {
        if (op.kind == OpKind::select) selected_[op.out] = true;
        if (op.kind == OpKind::norm || op.kind == OpKind::swiglu || (op.kind == OpKind::matmul && !op.add))
            selected_[op.out] = selected_[op.in];
    }
    for (size_t i = 0; i < selected_.size(); ++i) program_.buffers_[i].reserve(rows(i));
    if (batch_.adapters == nullptr) return;
    for (int64_t span = 0; span < batch_.num_spans; ++span)
        for (const Op& op : program_.ops_)
            if (op.kind == OpKind::lora && batch_.adapters[span] != nullptr) {
                const Matrix* down = batch_.adapters[span][op.site].down;
                if (down != nullptr) rank_ = std::max(rank_, divide_up(down->rows, 32) * 32);
            }
    program_.low_rank_.resize(batch_.rows * rank_);
}

void Step::reserve_scratch() {
    size_t bytes = 0;
    for (const Matrix& matrix : program_.matrices_) bytes = std::max(bytes, kernels_.matmul_scratch(matrix));
    for (const CacheLayer& layer : program_.layers_) {
        const size_t attention = divide_up(kernels_.attention_scratch(program_.heads_, layer), 64) * 64;
        bytes = std::max(bytes, attention + part_floats_ * sizeof(float));
    }
    if (batch_.adapters != nullptr)  // float matrices all want the same
        for (int64_t span = 0; span < batch_.num_spans; ++span)
            for (const Op& op : program_.ops_) {
                const AdapterSite* site = op.kind == OpKind::lora ? adapter(op, span) : nullptr;
                if (site == nullptr) continue;
                bytes = std::max({bytes, kernels_.matmul_scratch(*site->down), kernels_.matmul_scratch(*site->up)});
            }
    if (to_.best != nullptr)
        best_.resize(rows(program_.result_) * divide_up(program_.buffers_[program_.result_].columns, kBestPiece));
    for (const Buffer& buffer : program_.buffers_) bytes = std::max(bytes, buffer.padded * sizeof(float));
    program_.scratch_.resize(threads_);
    for (auto& scratch : program_.scratch_)
        if (scratch.size() < bytes + 64) scratch.resize(bytes + 64);
}

// Where a row of floats is made that `forms` takes next: in the buffer, or where it can be forgotten afterwards.
float* Step::floats(Buffer& buffer, int64_t row, Share& share) const {
    const bool kept = (buffer.forms & kFloat) || batch_.adapters != nullptr;
    return kept ? buffer.row(row) : reinterpret_cast<float*>(share.scratch);
}

// Brings a row x into all forms that the buffer has beside float.
void Step::forms(Buffer& buffer, int64_t row, float* x) {
    std::fill(x + buffer.columns, x + buffer.padded, 0.0f);
    for (int group : {16, 32}) {
        Activations to = buffer.activations(group);
        if (group == 16 && to.codes == nullptr) continue;  // without any codes, bfloat16 is written with the others
        to.f32 = nullptr;
        if (to.codes != nullptr || to.bf16 != nullptr) kernels_.quantize(x, buffer.columns, to, row);
    }
}

void Step::embed(const Op& op, Share& share) {
    Buffer& out = program_.buffers_[op.out];
    const Matrix& table = program_.matrices_[op.matrix];
    each(share, rows(op.out), 16, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            unpack_row(table, batch_.tokens[row], out.row(row));
            forms(out, row, out.row(row));
        }
    });
}

void Step::input(const Op& op, Share& share) {
    Buffer& out = program_.buffers_[op.out];
    each(share, rows(op.out), 16, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            float* x = floats(out, row, share);
            std::copy_n(batch_.input + row * out.columns, out.columns, x);
            forms(out, row, x);
        }
    });
}

// The largest numbers of the result, piece by piece: one long row is shared, too.
void Step::best(const Op&, Share& share) {
    Buffer& result = program_.buffers_[program_.result_];
    const int64_t pieces = divide_up(result.columns, kBestPiece);
    each(share, rows(program_.result_) * pieces, 1, [&](int64_t item, int64_t) {
        const int64_t first = item % pieces * kBestPiece;
        auto& [value, id] = best_[item];
        kernels_.argmax(result.row(item / pieces) + first, std::min(kBestPiece, result.columns - first), &value, &id);
        id += first;
    });
}

void Step::join_best() {
    const int64_t pieces = divide_up(program_.buffers_[program_.result_].columns, kBestPiece);
    for (int64_t row = 0; row < rows(program_.result_); ++row) {
        std::pair<float, int64_t> best = best_[row * pieces];
        for (int64_t i = 1; i < pieces && !std::isnan(best.first); ++i) {
            const auto& other = best_[row * pieces + i];
            if (!(other.first <= best.first)) best = other;
        }
        to_.best[row] = best.first, to_.best_ids[row] = best.second;
    }
}

void Step::norm(const Op& op, Share& share) {
    Buffer &in = program_.buffers_[op.in], &out = program_.buffers_[op.out];
    each(share, rows(op.in), 8, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            float* x = floats(out, row, share);
            kernels_.rms_norm(in.row(row), op.weights, op.eps, in.columns, x);
            forms(out, row, x);
        }
    });
}

void Step::swiglu(const Op& op, Share& share) {
    Buffer &in = program_.buffers_[op.in], &out = program_.buffers_[op.out];
    each(share, rows(op.in), 4, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            float* x = floats(out, row, share);
            kernels_.swiglu(in.row(row), in.row(row) + out.columns, out.columns, x);
            forms(out, row, x);
        }
    });
}

void Step::select(const Op& op, Share& share) {
    Buffer &in = program_.buffers_[op.in], &out = program_.buffers_[op.out];
    each(share, batch_.num_wanted, 16, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            std::copy_n(in.row(batch_.wanted[row]), in.columns, out.row(row));
            forms(out, row, out.row(row));
        }
    });
}

void Step::matmul(const Op& op, Share& share) {
    const Matrix& matrix = program_.matrices_[op.matrix];
    Buffer &in = program_.buffers_[op.in], &out = program_.buffers_[op.out];
    multiply({&matrix, in.activations(matrix.activation_group()), op.weights, out.row(0) + op.column, out.padded, op.add != 0,
              program_.exact_},
             rows(op.in), share);
}

void Step::multiply(const Matmul& call, int64_t rows, Share& share) {
    if (rows <= kFewRows) {
        const auto [begin, end] = own_blocks(*call.matrix, share.thread);
        if (rows > 0 && begin < end) kernels_.matmul(call, 0, rows, begin, end, share.scratch);
        return;
    }
    const int64_t bands = divide_up(rows, kPanelRows);
    const int64_t blocks = call.matrix->blocks(), panels = divide_up(blocks, kPanelBlocks);
    each(share, bands * panels, 1, [&](int64_t item, int64_t) {
        const int64_t row = item % bands * kPanelRows, block = item / bands * kPanelBlocks;
        kernels_.matmul(call, row, std::min(rows, row + kPanelRows), block, std::min(blocks, block + kPanelBlocks),
                        share.scratch);
    });
}

const AdapterSite* Step::adapter(const Op& op, int64_t span) const {
    const AdapterSite* sites = batch_.adapters[span];
    return sites == nullptr || sites[op.site].down == nullptr ? nullptr : &sites[op.site];
}

// The rows of a span in the buffer that an operation reads: first and count.
std::pair<int64_t, int64_t> Step::lora_rows(const Op& op, int64_t item) const {
    const Span& span = batch_.spans[item];
    if (!selected_[op.in]) return {span.first_row, span.rows};
    const int64_t* end = batch_.wanted + batch_.num_wanted;
    const int64_t* first = std::lower_bound(batch_.wanted, end, span.first_row);
    const int64_t* last = std::lower_bound(first, end, span.first_row + span.rows);
    return {first - batch_.wanted, last - first};
}

void Step::lora_down(const Op& op, Share& share) {
    Buffer& in = program_.buffers_[op.in];
    each(share, batch_.num_spans, 1, [&](int64_t item, int64_t) {
        const AdapterSite* site = adapter(op, item);
        if (site == nullptr) return;
        const auto [first, count] = lora_rows(op, item);
        Activations x = in.activations(32);
        x.f32 = in.row(first);
        const int64_t rank = site->down->rows, padded = site->up->padded_columns;
        float* out = program_.low_rank_.data() + first * rank_;
        kernels_.matmul({site->down, x, nullptr, out, padded, false, false}, 0, count, 0, site->down->blocks(),
                        share.scratch);
        for (int64_t row = 0; row < count; ++row) std::fill(out + row * padded + rank, out + (row + 1) * padded, 0.0f);
    });
}

void Step::lora_up(const Op& op, Share& share) {
    Buffer& out = program_.buffers_[op.out];
    each(share, batch_.num_spans, 1, [&](int64_t item, int64_t) {
        const AdapterSite* site = adapter(op, item);
        if (site == nullptr) return;
        const auto [first, count] = lora_rows(op, item);
        Activations x{site->up->padded_columns, program_.low_rank_.data() + first * rank_, nullptr, nullptr, nullptr,
                      nullptr, 32};
        kernels_.matmul({site->up, x, nullptr, out.row(first) + op.column, out.padded, true, false}, 0, count, 0,
                        site->up->blocks(), share.scratch);
    });
}

}  // namespace corral
