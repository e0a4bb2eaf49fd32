// Matrix products: every kind of weight, every number of rows up to 70, whole by the reference and in pieces by the other set.
#include "isa_compare.h"
#include "unpack.h"

namespace corral {
namespace {

int64_t up_to(int64_t multiple, int64_t n) { return (n + multiple - 1) / multiple * multiple; }

// A random matrix as matrix.h describes it.
struct Weights {
    Matrix matrix{};
    Aligned<uint8_t> memory{0};

    Weights(Random& random, Codes codes, int64_t index) {
        const bool quantized = codes != Codes::f32 && codes != Codes::bf16;
        matrix.rows = random.between(1, random.chance(4) ? 150 : 40);
        matrix.columns = random.between(1, random.chance(6) ? 900 : 260);
        matrix.padded_columns = up_to(32, matrix.columns);
        matrix.codes = codes;
        if (quantized) {
            const int groups[] = {16, 32, 64, 128, static_cast<int>(matrix.padded_columns)};
            matrix.group = groups[index % 5];
            matrix.has_offsets = index / 5 % 2;
            matrix.scales = index / 10 % 2 ? Scales::f32 : Scales::f16;
            matrix.zero = static_cast<int32_t>(random.below(codes == Codes::u4 ? 16 : 256));
            for (uint8_t& level : matrix.levels) level = static_cast<uint8_t>(random.below(256));
        }
        const int64_t columns = matrix.padded_columns, size = matrix.scales == Scales::f16 ? 2 : 4;
        const int64_t scales = quantized ? (columns + matrix.group - 1) / matrix.group * kLanes : 0;
        const int64_t scale_bytes = up_to(64, scales * size), offset_bytes = matrix.has_offsets ? scale_bytes : 0;
        const int64_t bits = codes == Codes::f32 ? 32 : codes == Codes::bf16 ? 16 : codes == Codes::u8 ? 8 : 4;
        matrix.block_bytes = scale_bytes + offset_bytes + columns * kLanes * bits / 8;
        matrix.scales_at = -scale_bytes - offset_bytes;
        matrix.offsets_at = -offset_bytes;
        memory = Aligned<uint8_t>(matrix.blocks() * matrix.block_bytes);
        matrix.data = memory.get() - matrix.scales_at;
        for (int64_t block = 0; block < matrix.blocks(); ++block) {
            uint8_t* at = memory.get() + block * matrix.block_bytes;
            fill_scales(random, at, scales);
            if (matrix.has_offsets) fill_scales(random, at + scale_bytes, scales);
            fill_codes(random, at - matrix.scales_at, columns * kLanes * bits / 8);
        }
    }

private:
    void fill_scales(Random& random, uint8_t* to, int64_t count) const {
        for (int64_t i = 0; i < count; ++i) {
            const float value = random.bell() * 0.1f;  // halves from 2^-5 to 1/2, and some below 2^-14
            const auto sign = static_cast<uint16_t>(random.below(2) << 15);
            const int64_t size = random.chance(9) ? random.below(0x400) : random.between(0x2800, 0x3800);
            const auto bits = static_cast<uint16_t>(sign | size);
            if (matrix.scales == Scales::f32) std::memcpy(to + i * sizeof value, &value, sizeof value);
            else std::memcpy(to + i * sizeof bits, &bits, sizeof bits);
        }
    }

    void fill_codes(Random& random, uint8_t* to, int64_t bytes) const {
        const bool floats = matrix.codes == Codes::f32 || matrix.codes == Codes::bf16;
        if (!floats)
            for (int64_t i = 0; i < bytes; ++i) to[i] = static_cast<uint8_t>(random.below(256));
        const int64_t size = matrix.codes == Codes::f32 ? 4 : 2;
        for (int64_t i = 0; floats && i < bytes / size; ++i) {
            const float value = random.bell();
            std::memcpy(to + i * size, reinterpret_cast<const uint8_t*>(&value) + 4 - size, size);  // the upper half: bfloat16
        }
    }
};

// Random activations in every form.
struct Inputs {
    Aligned<float> f32, scales;
    Aligned<uint16_t> bf16;
    Aligned<int8_t> codes;
    Aligned<int32_t> sums;
    Activations forms;

    Inputs(Random& random, const Kernels& kernels, const Matrix& m, int64_t rows)
        : f32(rows * m.padded_columns), scales(rows * m.padded_columns / m.activation_group()), bf16(f32.size()),
          codes(f32.size()), sums(scales.size()),
          forms{m.padded_columns, f32.get(), bf16.get(), codes.get(), scales.get(), sums.get(), m.activation_group()} {
        for (int64_t row = 0; row < rows; ++row) {
            std::vector<float> x = random.floats(m.columns, random.chance(9) ? 0.0f : std::exp(random.uniform(-8, 8)));
            if (random.chance(40)) x[random.below(m.columns)] = random.chance(2) ? NAN : -INFINITY;
            kernels.quantize(x.data(), m.columns, forms, row);
        }
    }

    // What the products of a matrix are made of: int8 codes, bfloat16 or floats.
    double value(const Matrix& m, bool exact, int64_t at) const {
        if (m.codes == Codes::f32) return f32[at];
        if (m.codes != Codes::bf16 && !exact) return double{scales[at / forms.group]} * codes[at];
        const uint32_t bits = uint32_t{bf16[at]} << 16;
        float widened;
        std::memcpy(&widened, &bits, sizeof widened);
        return widened;
    }
};

struct Product {
    double sum = 0, magnitude = 0;  // of the terms; the latter with offsets apart
};

// x w^T in double precision, [rows, matrix rows].
std::vector<Product> products(const Matrix& m, const Inputs& x, bool exact, int64_t rows) {
    std::vector<Product> all(rows * m.rows);
    std::vector<float> weights(m.columns), scaled(m.columns);
    Matrix without = m;
    without.has_offsets = 0;
    for (int64_t n = 0; n < m.rows; ++n) {
        unpack_row(m, n, weights.data());
        unpack_row(without, n, scaled.data());
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t k = 0; k < m.columns; ++k) {
                const double value = x.value(m, exact, row * m.padded_columns + k), weight = scaled[k];
                all[row * m.rows + n].sum += weights[k] * value;
                all[row * m.rows + n].magnitude += (std::fabs(weight) + std::fabs(weights[k] - weight)) * std::fabs(value);
            }
    }
    return all;
}

// Rows and blocks of a product in one piece, or in four that meet at (row, block).
void run(const Kernels& kernels, const Matmul& call, int64_t rows, int64_t row, int64_t block) {
    const Aligned<uint8_t> scratch(static_cast<int64_t>(kernels.matmul_scratch(*call.matrix)));
    const int64_t row_ends[] = {0, row, rows}, block_ends[] = {0, block, call.matrix->blocks()};
    for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j)
            if (row_ends[i] < row_ends[i + 1] && block_ends[j] < block_ends[j + 1])
                kernels.matmul(call, row_ends[i], row_ends[i + 1], block_ends[j], block_ends[j + 1], scratch.get());
}

void compare(const Pair& pair, Random& random, Codes codes, bool exact, int64_t rows) {
    const Weights weights(random, codes, rows);
    const Matrix& m = weights.matrix;
    const Inputs x(random, pair.reference, m, rows);
    const int64_t stride = m.rows + random.below(5);
    const std::vector<float> bias = random.floats(m.rows), before = random.floats(rows * stride);
    const bool with_bias = random.chance(2), add = random.chance(2);

    std::vector<float> wanted = before, got = before;
    Matmul call{&m, x.forms, with_bias ? bias.data() : nullptr, wanted.data(), stride, add, exact};
    run(pair.reference, call, rows, rows, m.blocks());
    call.out = got.data();
    run(pair.kernels, call, rows, random.below(rows + 1), random.below(m.blocks() + 1));

    const bool pairs = codes == Codes::bf16 || exact;
    const bool same_bits = pair.fuses && (pair.plain_pairs || !pairs);
    const bool floats = codes == Codes::f32 || pairs;
    // Roundings of a sum: two for each column in floating point, else four for each group; some more at its ends.
    const double roundings = 2.0 * static_cast<double>(floats ? m.padded_columns : 0) +
                             4.0 * static_cast<double>(m.padded_columns / m.activation_group()) + 8;
    const std::vector<Product> exactly = products(m, x, exact, rows);
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t n = 0; n < stride; ++n) {
            const int64_t at = row * stride + n;
            if (n >= m.rows) {
                pair.expect("memory beside a product", before[at], got[at], 0);
                continue;
            }
            const Product& product = exactly[row * m.rows + n];
            const double more = (with_bias ? bias[n] : 0.0) + (add ? before[at] : 0.0), sum = product.sum + more;
            const double size = product.magnitude + (with_bias ? std::fabs(bias[n]) : 0) + (add ? std::fabs(before[at]) : 0);
            const double bound = roundings * kRound * size + 1e-36;
            pair.expect("a product", wanted[at], got[at], same_bits ? 0 : 2 * bound);
            if (std::isfinite(sum)) CHECK(std::fabs(sum - wanted[at]) <= bound);
            else CHECK(!std::isfinite(wanted[at]));
        }
}

}  // namespace

void compare_matmul(const Pair& pair) {
    Random random(1);
    for (const Codes codes : {Codes::f32, Codes::bf16, Codes::u8, Codes::u4, Codes::lut4})
        for (int64_t rows = 1; rows <= 70; ++rows) {
            compare(pair, random, codes, false, rows);
            if (codes != Codes::f32 && codes != Codes::bf16 && rows % 2) compare(pair, random, codes, true, rows);
        }
}

}  // namespace corral
