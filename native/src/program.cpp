#include "program.h"

#include <algorithm>

#include "step.h"

namespace corral {

Program::Program(const ProgramSpec& spec, const Kernels& kernels)
    : heads_(spec.heads),
      exact_(spec.exact != 0),
      layers_(spec.layers, spec.layers + spec.num_layers),
      ops_(spec.ops, spec.ops + spec.num_ops),
      result_(spec.result),
      kernels_(kernels) {
    if (spec.inverse_frequencies != nullptr)
        frequencies_.assign(spec.inverse_frequencies, spec.inverse_frequencies + heads_.head_dim / 2);
    for (int i = 0; i < spec.num_matrices; ++i) matrices_.push_back(*spec.matrices[i]);
    for (int i = 0; i < spec.num_buffers; ++i) buffers_.emplace_back(spec.buffers[i]);
}

bool Program::run(Pool& pool, const Batch& batch, const Result& to) {
    Buffer& result = buffers_[result_];
    const bool in_place = result.padded == result.columns;
    if (in_place) result.lend(to.rows);
    Step step(*this, pool, batch, to);
    if (!step.run()) return false;
    for (int64_t row = 0; !in_place && row < step.rows(result_); ++row)
        std::copy_n(result.row(row), result.columns, to.rows + row * result.columns);
    return true;
}

Buffer::Buffer(const BufferSpec& spec)
    : columns(spec.columns), padded((spec.columns + 31) / 32 * 32), forms(spec.forms) {}

void Buffer::reserve(int64_t rows) {
    if (rows <= rows_) return;
    rows_ = rows;
    if (lent_ == nullptr) f32.resize(rows * padded);
    if (forms & kBfloat16) bf16.resize(rows * padded);
    for (int size : {16, 32}) {
        if (!(forms & (size == 16 ? kCodes16 : kCodes32))) continue;
        Codes8& own = codes[size == 32];
        own.codes.resize(rows * padded);
        own.scales.resize(rows * padded / size);
        own.sums.resize(rows * padded / size);
    }
}

Activations Buffer::activations(int group) {
    Codes8& own = codes[group == 32];
    const bool coded = !own.codes.empty();
    return {padded,
            row(0),
            bf16.empty() ? nullptr : bf16.data(),
            coded ? own.codes.data() : nullptr,
            coded ? own.scales.data() : nullptr,
            coded ? own.sums.data() : nullptr,
            group};
}

}  // namespace corral
