// What the comparisons of instruction sets share: random numbers, memory of the exact size, and the reference.
//
// The reference is the generic kernels. Where the processor has a fused multiply-add, every set promises the same bits as
// generic kernels that use it; on x86, generic kernels for any processor do not, and are held to a bound like the set
// that multiplies pairs of bfloat16 in an order of its own.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "kernels.h"

namespace corral {

constexpr double kRound = 0x1p-24;  // relative error of one rounding to float
constexpr double kRoundHalf = 0x1p-8;  // of one to bfloat16; twice what it need be

class Random {
public:
    explicit Random(uint32_t seed) : engine_(seed) {}
    int64_t below(int64_t end) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(end)); }
    int64_t between(int64_t first, int64_t last) { return first + below(last - first + 1); }
    bool chance(int in) { return below(in) == 0; }
    float uniform(float low, float high) { return low + (high - low) * static_cast<float>(engine_() * 0x1p-32); }
    float bell() { return uniform(-1, 1) + uniform(-1, 1) + uniform(-1, 1); }
    void fill(float* x, int64_t count, float scale = 1.0f) {
        for (int64_t i = 0; i < count; ++i) x[i] = bell() * scale;
    }
    std::vector<float> floats(int64_t count, float scale = 1.0f) {
        std::vector<float> x(count);
        fill(x.data(), count, scale);
        return x;
    }

private:
    std::mt19937 engine_;
};

// On 64 bytes, and not a byte longer than asked for: a sanitizer sees who reads on.
template <typename T>
class Aligned {
public:
    explicit Aligned(int64_t count) : count_(count), memory_(static_cast<T*>(allocate(count * sizeof(T)))) {}
    T* get() const { return memory_.get(); }
    T& operator[](int64_t i) const { return memory_.get()[i]; }
    int64_t size() const { return count_; }

private:
    static void* allocate(size_t bytes) {
        void* memory = nullptr;
        CHECK(posix_memalign(&memory, 64, bytes > 0 ? bytes : 1) == 0);
        std::memset(memory, 0, bytes);
        return memory;
    }
    struct Free {
        void operator()(T* p) const { std::free(p); }
    };
    int64_t count_;
    std::unique_ptr<T, Free> memory_;
};

// Two sets that are compared, and what the second promises.
struct Pair {
    const Kernels& reference;
    const Kernels& kernels;
    bool fuses;        // a multiply-add rounds once, as the reference's does
    bool plain_pairs;  // products of bfloat16 are such multiply-adds, one after the other

    // Complains and ends the test unless `got` is within `bound` of `wanted`; NaN wants NaN, and no bound the same number.
    void expect(const char* what, float wanted, float got, double bound) const {
        if (std::isnan(wanted) ? std::isnan(got) : wanted == got || std::fabs(double{wanted} - got) <= bound) return;
        std::fprintf(stderr, "%s of %s: %.9g, and %.9g by %s (bound %.3g)\n", what, kernels.name, got, wanted, reference.name,
                     bound);
        std::exit(1);
    }
    void expect(const char* what, const std::vector<float>& wanted, const std::vector<float>& got) const {
        CHECK(wanted.size() == got.size());
        for (size_t i = 0; i < wanted.size(); ++i) expect(what, wanted[i], got[i], 0);
    }
    template <typename T>
    void expect_bytes(const char* what, const T* wanted, const T* got, int64_t count) const {
        if (std::memcmp(wanted, got, count * sizeof(T)) == 0) return;
        std::fprintf(stderr, "%s: other bytes by %s than by %s\n", what, kernels.name, reference.name);
        std::exit(1);
    }
};

void compare_rows(const Pair& pair);       // norm, swiglu, rotate, quantize, store, and what is read off logits
void compare_matmul(const Pair& pair);
void compare_attention(const Pair& pair);

}  // namespace corral
