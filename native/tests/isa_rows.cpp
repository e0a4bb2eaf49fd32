// What is done to one row at a time.
#include "isa_compare.h"

namespace corral {
namespace {

// Numbers on which conversions and comparisons differ if they are wrong anywhere.
void add_extremes(Random& random, std::vector<float>& x) {
    const float extremes[] = {0.0f, -0.0f, 1e-45f, -1e-40f, 1.17549435e-38f, 6.1e-5f, 5.96e-8f, 2.98e-8f, 2.981e-8f, 65504.0f,
                              65519.9f, 65520.0f, 1e9f, 3.39e38f, -3.4e38f, 1.00390625f, 1.01171875f, INFINITY, -INFINITY,
                              NAN, -NAN};
    for (const float extreme : extremes)
        if (random.chance(2)) x[random.below(static_cast<int64_t>(x.size()))] = extreme;
}

void compare_norm(const Pair& pair, Random& random, int64_t columns) {
    const std::vector<float> x = random.floats(columns, std::exp(random.uniform(-5, 5))), weight = random.floats(columns);
    std::vector<float> wanted(columns + 1, 7.0f), got(columns + 1, 7.0f);  // one more: nothing is written behind the end
    pair.reference.rms_norm(x.data(), weight.data(), 1e-5f, columns, wanted.data());
    pair.kernels.rms_norm(x.data(), weight.data(), 1e-5f, columns, got.data());
    const double relative = (2.0 * static_cast<double>(columns / 64) + 32) * kRound;  // 64 sums, joined; a root, two products
    for (int64_t i = 0; i <= columns; ++i)
        pair.expect("a norm", wanted[i], got[i], pair.fuses ? 0 : relative * std::fabs(wanted[i]));
}

void compare_swiglu(const Pair& pair, Random& random, int64_t columns) {
    std::vector<float> gate = random.floats(columns, 30), up = random.floats(columns);
    if (pair.fuses && random.chance(3)) add_extremes(random, gate), add_extremes(random, up);
    std::vector<float> wanted(columns + 1, 7.0f), got(columns + 1, 7.0f);
    pair.reference.swiglu(gate.data(), up.data(), columns, wanted.data());
    pair.kernels.swiglu(gate.data(), up.data(), columns, got.data());
    for (int64_t i = 0; i <= columns; ++i)  // the exponential is within 2 units of the last place, or 4 without fusing
        pair.expect("swiglu", wanted[i], got[i], pair.fuses ? 0 : 16 * kRound * std::fabs(wanted[i]) + 1e-37);
}

void compare_rotate(const Pair& pair, Random& random, int32_t head_dim) {
    const auto heads = static_cast<int32_t>(random.between(1, 5));
    const std::vector<float> x = random.floats(int64_t{heads} * head_dim), cos = random.floats(head_dim / 2),
                             sin = random.floats(head_dim / 2);
    std::vector<float> wanted = x, got = x;
    pair.reference.rotate(wanted.data(), heads, head_dim, cos.data(), sin.data());
    pair.kernels.rotate(got.data(), heads, head_dim, cos.data(), sin.data());
    pair.expect("a rotation", wanted, got);
}

void compare_quantize(const Pair& pair, Random& random, int64_t columns, int32_t group) {
    std::vector<float> x = random.floats(columns, std::exp(random.uniform(-90, 80)));
    if (random.chance(2)) add_extremes(random, x);
    const int64_t padded = (columns + 31) / 32 * 32, groups = padded / group;
    struct Forms {
        Aligned<float> f32, scales;
        Aligned<uint16_t> bf16;
        Aligned<int8_t> codes;
        Aligned<int32_t> sums;
        Forms(int64_t columns, int64_t groups) : f32(columns), scales(groups), bf16(columns), codes(columns), sums(groups) {}
        void fill(const Kernels& kernels, const std::vector<float>& x, int32_t group) const {
            const Activations to{f32.size(), f32.get(), bf16.get(), codes.get(), scales.get(), sums.get(), group};
            kernels.quantize(x.data(), static_cast<int64_t>(x.size()), to, 0);
        }
    } wanted(padded, groups), got(padded, groups);
    wanted.fill(pair.reference, x, group);
    got.fill(pair.kernels, x, group);
    pair.expect_bytes("activations", wanted.f32.get(), got.f32.get(), padded);
    pair.expect_bytes("activations in bfloat16", wanted.bf16.get(), got.bf16.get(), padded);
    pair.expect_bytes("activations in int8", wanted.codes.get(), got.codes.get(), padded);
    pair.expect_bytes("sums of activations", wanted.sums.get(), got.sums.get(), groups);
    for (int64_t i = 0; i < groups; ++i) pair.expect("a scale", wanted.scales[i], got.scales[i], 0);
}

// A NaN has many forms in half precision: any of them will do.
void same_halves(const Pair& pair, const char* what, const uint8_t* wanted, const uint8_t* got, int64_t bytes,
                 uint16_t infinity) {
    for (int64_t i = 0; i < bytes; i += 2) {
        uint16_t a, b;
        std::memcpy(&a, wanted + i, sizeof a);
        std::memcpy(&b, got + i, sizeof b);
        const bool both_nan = (a & 0x7fff) > infinity && (b & 0x7fff) > infinity;
        if (!both_nan) pair.expect_bytes(what, &a, &b, 1);
    }
}

void compare_store(const Pair& pair, Random& random, CacheType type, int32_t head_dim) {
    const Heads heads{4, 2, head_dim, 1.0f};
    constexpr int64_t slots = 32, kv_heads = 2;
    const int64_t width = kv_heads * head_dim, bytes = 2 * kv_heads * slots * head_dim * 4;
    Aligned<uint8_t> wanted(bytes), got(bytes);
    Aligned<uint16_t> wanted_scales(2 * kv_heads * slots), got_scales(2 * kv_heads * slots);
    for (int64_t slot = 0; slot < slots; slot += random.between(1, 3)) {
        std::vector<float> k = random.floats(width, std::exp(random.uniform(-60, 30))), v = random.floats(width);
        if (random.chance(4)) add_extremes(random, k);
        pair.reference.store({type, wanted.get(), wanted_scales.get(), slots, 16}, heads, slot, k.data(), v.data());
        pair.kernels.store({type, got.get(), got_scales.get(), slots, 16}, heads, slot, k.data(), v.data());
    }
    if (type == CacheType::f16) return same_halves(pair, "a cache of halves", wanted.get(), got.get(), bytes, 0x7c00);
    if (type == CacheType::bf16) return same_halves(pair, "a cache of bfloat16", wanted.get(), got.get(), bytes, 0x7f80);
    pair.expect_bytes("a cache", wanted.get(), got.get(), bytes);
    same_halves(pair, "scales of a cache", reinterpret_cast<uint8_t*>(wanted_scales.get()),
                reinterpret_cast<uint8_t*>(got_scales.get()), 2 * wanted_scales.size(), 0x7f80);
}

void compare_logits(const Pair& pair, Random& random, int64_t count) {
    std::vector<float> x = random.floats(count, 8);
    for (float& each : x)
        if (random.chance(3)) each = std::round(each);  // many are the same
    float wanted = 0, got = 0;
    int64_t wanted_at = -1, got_at = -1;
    const float bound = random.chance(4) ? random.uniform(0, 20) : x[random.below(count)];  // often one of them
    const float factor = random.uniform(0.1f, 3.0f);

    const int64_t room = random.between(1, count);
    std::vector<int32_t> wanted_places(count, -1), got_places(count, -1);
    CHECK(pair.reference.find_from(x.data(), count, bound, wanted_places.data(), room) ==
          pair.kernels.find_from(x.data(), count, bound, got_places.data(), room));
    pair.expect_bytes("places", wanted_places.data(), got_places.data(), count);

    const int64_t rows = random.between(1, 9), columns = 16 * random.between(1, 5);
    const std::vector<float> table = random.floats(rows * columns);
    std::vector<float> wanted_maxima(columns), got_maxima(columns);
    pair.reference.column_maxima(table.data(), rows, columns, wanted_maxima.data());
    pair.kernels.column_maxima(table.data(), rows, columns, got_maxima.data());
    pair.expect("maxima of columns", wanted_maxima, got_maxima);

    pair.reference.argmax(x.data(), count, &wanted, &wanted_at);
    const double sum = pair.reference.exp_sum(x.data(), count, wanted, factor);
    const double other = pair.kernels.exp_sum(x.data(), count, wanted, factor);
    CHECK(pair.fuses ? sum == other : std::fabs(sum - other) <= 96 * kRound * sum);  // 40 additions, exponentials, a product

    if (random.chance(3)) x[random.below(count)] = random.chance(2) ? NAN : INFINITY;
    pair.reference.argmax(x.data(), count, &wanted, &wanted_at);
    pair.kernels.argmax(x.data(), count, &got, &got_at);
    pair.expect("the best logit", wanted, got, 0);
    CHECK(wanted_at == got_at);
}

}  // namespace

void compare_rows(const Pair& pair) {
    Random random(2);
    for (int64_t columns = 1; columns <= 200; ++columns) {
        compare_norm(pair, random, columns * (random.chance(5) ? 9 : 1));
        compare_swiglu(pair, random, columns);
        compare_rotate(pair, random, static_cast<int32_t>(2 * columns));
        compare_logits(pair, random, columns * (random.chance(5) ? 11 : 1));
        for (const int32_t group : {16, 32}) compare_quantize(pair, random, columns, group);
    }
    for (const CacheType type : {CacheType::f32, CacheType::f16, CacheType::bf16, CacheType::int8})
        for (const int32_t head_dim : {2, 16, 20, 64, 80, 128}) compare_store(pair, random, type, head_dim);
}

}  // namespace corral
