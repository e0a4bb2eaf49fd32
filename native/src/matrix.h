// A weight matrix [rows, columns] of a linear layer, packed for the kernels.
//
// Rows are packed in blocks of 16, one vector lane to a row; the last block is filled up with rows of zeros. Columns are
// padded with zeros to `padded_columns`, a multiple of 32. A block lies in one piece, `block_bytes` apart from the next:
//
//     scales | offsets | codes        each part begins on 64 bytes
//
// `data` is where the codes of the first block begin, so scales_at and offsets_at are negative. (Any order is right. This one
// lets a matrix-vector product read each block from its first byte to its last: it needs the scales as it reads the codes,
// and with a stretch of scales left out in between, the processor's prefetcher loses the stream, and half the bandwidth.)
//
// codes of one block, K = padded_columns:
//     f32    float [K][16]
//     bf16   bfloat16 [K / 2][16][2]                              two neighbouring columns in a lane
//     u8     uint8 [K / 4][16][4]                                 four neighbouring columns in a lane
//     u4     uint8 [K / 8][16][4]   low nibbles: columns 8i .. 8i+3 of a lane; high nibbles: 8i+4 .. 8i+7
//     lut4   as u4; a nibble is an index into `levels`
//
// scales of one block (u8, u4, lut4 only): [K / group][16], half precision or float; offsets likewise, if there are any.
//
// A weight is   scale * (code - zero) + offset   for u8 and u4, and   scale * (levels[code] - zero)   for lut4.
#pragma once
#include <cstddef>
#include <cstdint>

namespace corral {

constexpr int kLanes = 16;  // rows of a block

enum class Codes : int32_t { f32 = 0, bf16 = 1, u8 = 2, u4 = 3, lut4 = 4 };
enum class Scales : int32_t { none = 0, f16 = 1, f32 = 2 };

struct Matrix {
    int64_t rows;
    int64_t columns;
    int64_t padded_columns;
    Codes codes;
    Scales scales;        // also the type of the offsets
    int32_t has_offsets;
    int32_t group;        // columns that share a scale: 16, or a multiple of 32; padded_columns for one per row
    int32_t zero;         // 0 .. 255
    uint8_t levels[16];   // lut4
    const uint8_t* data;  // the codes of the first block
    int64_t block_bytes;
    int64_t scales_at;    // bytes from the codes of a block to its scales
    int64_t offsets_at;

    [[gnu::always_inline]] int64_t blocks() const { return (rows + kLanes - 1) / kLanes; }
    // Always inline: a copy that the linker picks may have been compiled for another processor.
    // Columns of an activation that share a scale when they meet this matrix.
    [[gnu::always_inline]] int activation_group() const { return group % 32 == 0 ? 32 : 16; }
};

// Rows of activations [rows, columns]. Each form is absent (null) unless some matrix or the caller wants it.
struct Activations {
    int64_t columns;         // of every form, padded with zeros to a multiple of 32
    float* f32;              // [rows, columns]
    uint16_t* bf16;          // [rows, columns]; round to nearest even
    int8_t* codes;           // [rows, columns]; -127 .. 127
    float* scales;           // [rows, columns / group]: the value is code * scale
    int32_t* sums;           // [rows, columns / group]: the sum of a group's codes
    int32_t group;           // 16 or 32
};

}  // namespace corral
