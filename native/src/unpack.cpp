#include "unpack.h"

#include <cmath>
#include <cstring>

namespace corral {
namespace {

float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

float from_bf16(uint16_t bits) { return from_bits(static_cast<uint32_t>(bits) << 16); }

// Half precision: 1 bit sign, 5 exponent, 10 fraction (IEEE 754).
float from_f16(uint16_t bits) {
    const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ffu;
    if (exponent == 31) return from_bits(sign | 0x7f800000u | fraction << 13);
    if (exponent != 0) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    const float value = std::ldexp(static_cast<float>(fraction), -24);
    return sign != 0 ? -value : value;
}

float number(const Matrix& matrix, const uint8_t* values, int64_t index) {
    if (matrix.scales == Scales::f32) {
        float value;
        std::memcpy(&value, values + index * sizeof value, sizeof value);
        return value;
    }
    uint16_t bits;
    std::memcpy(&bits, values + index * sizeof bits, sizeof bits);
    return from_f16(bits);
}

int code(const Matrix& matrix, const uint8_t* block, int64_t lane, int64_t column) {
    if (matrix.codes == Codes::u8) return block[(column / 4 * kLanes + lane) * 4 + column % 4];
    const uint8_t pair = block[(column / 8 * kLanes + lane) * 4 + column % 4];
    const int nibble = column % 8 < 4 ? pair & 15 : pair >> 4;
    return matrix.codes == Codes::lut4 ? matrix.levels[nibble] : nibble;
}

}  // namespace

void unpack_row(const Matrix& matrix, int64_t row, float* out) {
    const uint8_t* block = matrix.data + row / kLanes * matrix.block_bytes;
    const int64_t lane = row % kLanes;
    for (int64_t column = 0; column < matrix.columns; ++column) {
        if (matrix.codes == Codes::f32) {
            std::memcpy(&out[column], block + (column * kLanes + lane) * sizeof(float), sizeof(float));
        } else if (matrix.codes == Codes::bf16) {
            uint16_t bits;
            std::memcpy(&bits, block + ((column / 2 * kLanes + lane) * 2 + column % 2) * sizeof bits, sizeof bits);
            out[column] = from_bf16(bits);
        } else {
            const int64_t group = column / matrix.group * kLanes + lane;
            const float scale = number(matrix, block + matrix.scales_at, group);
            const float offset = matrix.has_offsets ? number(matrix, block + matrix.offsets_at, group) : 0.0f;
            out[column] = std::fma(scale, static_cast<float>(code(matrix, block, lane, column) - matrix.zero), offset);
        }
    }
}

}  // namespace corral
