// What of a step is about attention: rotations, the cache, and who attends to what.
#include <algorithm>
#include <cmath>

#include "step.h"

namespace corral {
namespace {

constexpr int64_t kRowTile = 32;      // rows of an attention unit: they share the keys that are loaded
constexpr int64_t kTurns = 4;         // of a thread, where threads share the stretches of few units
constexpr int64_t kStretchesInTurn = 8;

}  // namespace

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

}  // namespace corral
