// Attention over every type of cache.
#include <algorithm>

#include "isa_compare.h"

namespace corral {
namespace {

constexpr int kBlock = 16;

struct Shape {
    Heads heads;
    int64_t rows, start;
    int64_t group() const { return heads.q_heads / heads.kv_heads; }
    int64_t end() const { return start + rows; }
};

Shape random_shape(Random& random, CacheType type) {
    const int32_t dims[] = {32, 64, 96, 128, 20, 80}, kv_heads = static_cast<int32_t>(random.between(1, 2));
    const int32_t head_dim = dims[random.below(type == CacheType::bf16_pairs ? 4 : 6)];  // pairs want multiples of 32
    const int32_t q_heads = kv_heads * static_cast<int32_t>(random.between(1, 4));
    const int64_t start = random.chance(3) ? random.between(400, 1100) : random.below(150);
    return {{q_heads, kv_heads, head_dim, 1 / std::sqrt(static_cast<float>(head_dim))}, random.between(1, 40), start};
}

// A cache of random tokens, the blocks of the one sequence in any order.
struct Cache {
    std::vector<int32_t> blocks;
    Aligned<uint8_t> data;
    Aligned<uint16_t> scales;
    CacheLayer layer;

    Cache(Random& random, const Kernels& kernels, const Shape& shape, CacheType type, const std::vector<float>& k,
          const std::vector<float>& v)
        : blocks((shape.end() + kBlock - 1) / kBlock), data(2 * slots() * shape.heads.kv_heads * shape.heads.head_dim * 4),
          scales(2 * slots() * shape.heads.kv_heads), layer{type, data.get(), scales.get(), slots(), kBlock} {
        for (size_t i = 0; i < blocks.size(); ++i) {
            const auto other = static_cast<size_t>(random.below(static_cast<int64_t>(i) + 1));
            blocks[i] = blocks[other];
            blocks[other] = static_cast<int32_t>(i);
        }
        const int64_t width = int64_t{shape.heads.kv_heads} * shape.heads.head_dim;
        for (int64_t i = 0; i < shape.end(); ++i)
            kernels.store(layer, shape.heads, blocks[i / kBlock] * kBlock + i % kBlock, k.data() + i * width,
                          v.data() + i * width);
    }
    int64_t slots() const { return static_cast<int64_t>(blocks.size()) * kBlock; }
};

// Attention of all rows, `piece` of them at a time.
std::vector<float> attend(const Kernels& kernels, const Shape& shape, const Cache& cache, const std::vector<float>& q,
                          int64_t piece) {
    const Heads& heads = shape.heads;
    const int64_t stride = int64_t{heads.q_heads} * heads.head_dim, width = heads.head_dim + 2, group = shape.group();
    std::vector<float> out(q.size()), parts(((shape.end() - 1) / kStretch + 1) * piece * group * width);
    const Aligned<uint8_t> scratch(static_cast<int64_t>(kernels.attention_scratch(heads, cache.layer)));
    const Attention call{heads, cache.layer, q.data(), stride, out.data(), stride};
    const Span span{0, shape.rows, shape.start, cache.blocks.data()};
    for (int32_t head = 0; head < heads.kv_heads; ++head)
        for (int64_t first = 0; first < shape.rows; first += piece) {
            const int64_t count = std::min(piece, shape.rows - first), seen = (shape.start + first + count - 1) / kStretch + 1;
            kernels.attention_parts(call, {&span, first, count, head, 0, seen, nullptr}, parts.data(), scratch.get());
            for (int64_t i = 0; i < count * group; ++i) {
                const int64_t row = first + i / group, used = (shape.start + row) / kStretch + 1;
                std::vector<const float*> own;
                for (int64_t s = 0; s < used; ++s) own.push_back(parts.data() + (s * count * group + i) * width);
                kernels.attention_join(own.data(), used, heads.head_dim,
                                       out.data() + row * stride + (head * group + i % group) * heads.head_dim);
            }
        }
    return out;
}

void compare(const Pair& pair, Random& random, CacheType type) {
    const Shape shape = random_shape(random, type);
    const int64_t width = int64_t{shape.heads.kv_heads} * shape.heads.head_dim;
    const std::vector<float> k = random.floats(shape.end() * width), v = random.floats(shape.end() * width);
    std::vector<float> q = random.floats(shape.rows * shape.heads.q_heads * shape.heads.head_dim);
    for (float& each : q) each = std::round(each * 32) / 32;  // no set rounds these
    const bool pairs = type == CacheType::bf16_pairs;
    Random order = random;  // the same blocks twice
    const Cache ours(order, pair.kernels, shape, type, k, v);
    const Cache theirs(random, pair.reference, shape, pairs ? CacheType::bf16 : type, k, v);
    const std::vector<float> wanted = attend(pair.reference, shape, theirs, q, shape.rows);
    const std::vector<float> got = attend(pair.kernels, shape, ours, q, random.between(1, shape.rows));

    // A score is a sum of head_dim products, each at most 9: an error in it is a relative one of its exponential. Where pairs
    // of bfloat16 are multiplied, probabilities are rounded to it. The sums go over all positions; |v| is at most 3, or a
    // little more with its scale.
    const bool plain = pair.plain_pairs || type == CacheType::f32 || type == CacheType::f16;
    const double dim = shape.heads.head_dim, score = 2 * dim * kRound * 9 * dim * shape.heads.scale;
    const double sums = (2.0 * static_cast<double>(shape.end()) + 16) * kRound;
    const double bound = 3.1 * 2 * (score + (plain ? 0 : kRoundHalf) + sums);
    for (size_t i = 0; i < wanted.size(); ++i)
        pair.expect("attention", wanted[i], got[i], pair.fuses && plain ? 0 : bound);
}

}  // namespace

void compare_attention(const Pair& pair) {
    Random random(3);
    for (const CacheType type : {CacheType::f32, CacheType::f16, CacheType::bf16, CacheType::int8, CacheType::bf16_pairs})
        for (int i = 0; i < 16; ++i)
            if (type != CacheType::bf16_pairs || pair.kernels.reads_pairs) compare(pair, random, type);
}

}  // namespace corral
