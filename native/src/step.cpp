#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "unpack.h"

namespace corral {
namespace {

constexpr int64_t kRowTile = 32;      // rows of an attention unit: they share the keys that are loaded
constexpr int64_t kTurns = 4;         // of a thread, where threads share the stretches of few units
constexpr int64_t kStretchesInTurn = 8;
constexpr int64_t kFewRows = 8;       // up to here a matrix product is bound by reading the weights
constexpr int64_t kAheadBytes = 256 << 10;  // of weights that are asked for early: a part of the second cache
constexpr int64_t kPanelBlocks = 12;  // of a larger product: a share of work
constexpr int64_t kPanelRows = 256;
constexpr int64_t kBestPiece = 8192;  // columns

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

// Takes chunks of [0, count) until none is left.
template <typename Body> void Step::each(Share& share, int64_t count, int64_t chunk, Body body) {
    if (count <= 0) return;
    for (;;) {
        const int64_t begin = share.next->fetch_add(chunk, std::memory_order_relaxed);
        if (begin >= count) return;
        body(begin, std::min(count, begin + chunk));
    }
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

void Step::plan_attention() {
    const Heads& heads = program_.heads_;
    program_.rotation_.resize(batch_.rows * heads.head_dim);
    const int64_t row_floats = heads.q_heads / heads.kv_heads * (heads.head_dim + 2);
    int64_t floats = 0;
    for (int64_t i = 0; i < batch_.num_spans; ++i) {
        const Span& span = batch_.spans[i];
        for (int64_t first = 0; first < span.rows; first += kRowTile) {
            const int64_t count = std::min(kRowTile, span.rows - first);
            const int64_t stretches = divide_up(span.start + first + count, kStretch);
            for (int32_t head = 0; head < heads.kv_heads; ++head)
                units_.push_back({&span, first, count, head, stretches, nullptr});
            part_floats_ = std::max(part_floats_, stretches * count * row_floats);
            floats += heads.kv_heads * stretches * count * row_floats;
        }
    }
    if (static_cast<int64_t>(units_.size()) >= 4 * threads_) return;
    // Too few units for the threads: they share the stretches of each.
    program_.parts_.resize(std::max<size_t>(program_.parts_.size(), floats));
    float* parts = program_.parts_.data();
    for (size_t i = 0; i < units_.size(); ++i) {
        AttentionUnit& unit = units_[i];
        unit.parts = parts;
        parts += unit.stretches * unit.count * row_floats;
        for (int64_t stretch = 0; stretch < unit.stretches; ++stretch) stretches_.emplace_back(i, stretch);
    }
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

void Step::rotation(const Op&, Share& share) {
    const int half = program_.heads_.head_dim / 2;
    each(share, batch_.rows, 16, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            float* cosines = program_.rotation_.data() + row * 2 * half;
            for (int i = 0; i < half; ++i) {
                const float angle = static_cast<float>(batch_.positions[row]) * program_.frequencies_[i];
                cosines[i] = std::cos(angle);
                cosines[half + i] = std::sin(angle);
            }
        }
    });
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

void Step::rotate(const Op& op, Share& share) {
    const Heads& heads = program_.heads_;
    const CacheLayer& layer = program_.layers_[op.layer];
    Buffer& qkv = program_.buffers_[op.out];
    const int64_t head_dim = heads.head_dim;
    each(share, batch_.rows, 8, [&](int64_t begin, int64_t end) {
        const Span* span = std::upper_bound(batch_.spans, batch_.spans + batch_.num_spans, begin,
                                            [](int64_t row, const Span& s) { return row < s.first_row + s.rows; });
        for (int64_t row = begin; row < end; ++row) {
            while (row >= span->first_row + span->rows) ++span;
            float* q = qkv.row(row);
            float* k = q + heads.q_heads * head_dim;
            const float* cosines = program_.rotation_.data() + row * head_dim;
            kernels_.rotate(q, heads.q_heads + heads.kv_heads, heads.head_dim, cosines, cosines + head_dim / 2);
            const int64_t position = span->start + row - span->first_row;
            const int64_t slot = static_cast<int64_t>(span->blocks[position / layer.block_size]) * layer.block_size +
                                 position % layer.block_size;
            kernels_.store(layer, heads, slot, k, k + heads.kv_heads * head_dim);
        }
    });
}

Attention Step::attention(const Op& op) {
    Buffer &in = program_.buffers_[op.in], &out = program_.buffers_[op.out];
    return {program_.heads_, program_.layers_[op.layer], in.row(0), in.padded, out.row(0), out.padded};
}

void Step::attend(const Op& op, Share& share) {
    if (!stretches_.empty()) {
        const int64_t count = stretches_.size();
        each(share, count, std::clamp(count / (kTurns * threads_), int64_t{1}, kStretchesInTurn), [&](int64_t begin, int64_t end) {
            while (begin < end) {
                const auto [unit, stretch] = stretches_[begin];
                const int64_t stretches = std::min(end - begin, units_[unit].stretches - stretch);
                attend_stretches(op, units_[unit], stretch, stretch + stretches, nullptr, units_[unit].parts, share.scratch);
                begin += stretches;
            }
        });
        return;
    }
    const size_t own = divide_up(kernels_.attention_scratch(program_.heads_, program_.layers_[op.layer]), 64) * 64;
    float* parts = reinterpret_cast<float*>(share.scratch + own);
    each(share, units_.size(), program_.heads_.kv_heads, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
            const int64_t last = units_.size() - 1;  // the longest come last in a prompt: first here
            const AttentionUnit& unit = units_[last - item];
            attend_stretches(op, unit, 0, unit.stretches, item + 1 < end ? &units_[last - item - 1] : nullptr, parts, share.scratch);
            join_rows(op, unit, parts);
        }
    });
}

void Step::attend_stretches(const Op& op, const AttentionUnit& unit, int64_t begin, int64_t end, const AttentionUnit* next,
                            float* parts, uint8_t* scratch) {
    const Heads& heads = program_.heads_;
    const int64_t floats = unit.count * (heads.q_heads / heads.kv_heads) * (heads.head_dim + 2);
    AttentionParts after{};
    if (next != nullptr) after = {next->span, next->first, next->count, next->kv_head, 0, next->stretches, nullptr};
    kernels_.attention_parts(
        attention(op), {unit.span, unit.first, unit.count, unit.kv_head, begin, end, next == nullptr ? nullptr : &after},
        parts + begin * floats, scratch);
}

void Step::join_rows(const Op& op, const AttentionUnit& unit, const float* parts) {
    const Heads& heads = program_.heads_;
    const int64_t group = heads.q_heads / heads.kv_heads, floats = heads.head_dim + 2;
    Buffer& out = program_.buffers_[op.out];
    std::vector<const float*> own(unit.stretches);
    for (int64_t row = 0; row < unit.count; ++row) {
        const int64_t seen = (unit.span->start + unit.first + row) / kStretch + 1;
        for (int64_t head = 0; head < group; ++head) {
            for (int64_t i = 0; i < seen; ++i) own[i] = parts + ((i * unit.count + row) * group + head) * floats;
            float* to = out.row(unit.span->first_row + unit.first + row) + (unit.kv_head * group + head) * heads.head_dim;
            kernels_.attention_join(own.data(), seen, heads.head_dim, to);
        }
    }
}

void Step::join(const Op& op, Share& share) {
    Buffer& out = program_.buffers_[op.out];
    if (!stretches_.empty()) {
        // Units of one span's rows lie together, a head after the other.
        const int64_t heads = program_.heads_.kv_heads;
        each(share, units_.size() / heads, 1, [&](int64_t item, int64_t) {
            const AttentionUnit* units = &units_[item * heads];
            for (int64_t head = 0; head < heads; ++head) join_rows(op, units[head], units[head].parts);
            const int64_t first = units->span->first_row + units->first;
            for (int64_t row = first; row < first + units->count; ++row) forms(out, row, out.row(row));
        });
        return;
    }
    each(share, batch_.rows, 8, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) forms(out, row, out.row(row));
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
