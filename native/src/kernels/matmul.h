// out = x w^T for every kind of weight.
#pragma once
#include "matmul_codes.h"
#include "matmul_float.h"

namespace corral::CORRAL_NAMESPACE {

inline size_t matmul_scratch(const Matrix&) {
    constexpr size_t codes = codes_scratch(), exact = float_scratch<ExactPanel>(), plain = float_scratch<PlainPanel<Bf16>>();
    return codes > exact ? (codes > plain ? codes : plain) : (exact > plain ? exact : plain);
}

inline void matmul(const Matmul& m, int64_t row, int64_t row_end, int64_t block, int64_t block_end, void* scratch) {
    switch (m.matrix->codes) {
        case Codes::f32: return matmul_plain<Float>(m, row, row_end, block, block_end, scratch);
        case Codes::bf16: return matmul_plain<Bf16>(m, row, row_end, block, block_end, scratch);
        default: break;
    }
    if (m.exact) return matmul_float<ExactPanel>(m, row, row_end, block, block_end, scratch);
    switch (m.matrix->codes) {
        case Codes::u8: return matmul_codes<Codes::u8>(m, row, row_end, block, block_end, scratch);
        case Codes::u4: return matmul_codes<Codes::u4>(m, row, row_end, block, block_end, scratch);
        default: return matmul_codes<Codes::lut4>(m, row, row_end, block, block_end, scratch);
    }
}

}  // namespace corral::CORRAL_NAMESPACE
