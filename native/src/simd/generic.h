// Sixteen lanes in plain C++, by the vector extension of GCC and Clang: correct on any processor. The reference for what
// the names mean that the other headers give as well.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#pragma GCC diagnostic ignored "-Wpsabi"  // everything here is inline: how a vector is passed is nobody's business

namespace corral::CORRAL_NAMESPACE {

typedef float FloatVector __attribute__((vector_size(64), aligned(16)));
typedef int32_t IntVector __attribute__((vector_size(64), aligned(16)));
typedef uint32_t UnsignedVector __attribute__((vector_size(64), aligned(16)));
typedef uint8_t ByteVector __attribute__((vector_size(64), aligned(16)));

template <typename To, typename From>
inline To bits_as(From from) {  // by value: a reference would lose how a vector is aligned
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

struct F32;

struct I32 {
    IntVector v;

    static I32 zero() { return {IntVector{}}; }
    static I32 broadcast(int32_t x) { return {IntVector{} + x}; }
    static I32 load(const int32_t* p) {
        I32 r;
        std::memcpy(&r.v, p, sizeof r.v);
        return r;
    }
    static I32 load_i8(const int8_t* p) {
        I32 r;
        for (int i = 0; i < 16; ++i) r.v[i] = p[i];
        return r;
    }
    static I32 round(F32 x);  // to the nearest integer, ties to even; |x| below 2^22
    static I32 bits(F32 x);
    void store(int32_t* p) const { std::memcpy(p, &v, sizeof v); }
    void store_i8(int8_t* p) const {
        for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(v[i]);
    }
    int32_t reduce_add() const {
        int32_t sum = 0;
        for (int i = 0; i < 16; ++i) sum += v[i];
        return sum;
    }
    int32_t reduce_max() const {
        int32_t most = v[0];
        for (int i = 1; i < 16; ++i) most = v[i] > most ? v[i] : most;
        return most;
    }
};

inline I32 operator+(I32 a, I32 b) { return {a.v + b.v}; }
inline I32 operator-(I32 a, I32 b) { return {a.v - b.v}; }
inline I32 operator&(I32 a, I32 b) { return {a.v & b.v}; }
inline I32 operator|(I32 a, I32 b) { return {a.v | b.v}; }
inline I32 select(IntVector mask, I32 a, I32 b) { return {(mask & a.v) | (~mask & b.v)}; }
inline I32 max(I32 a, I32 b) { return select(a.v > b.v, a, b); }
template <int n>
inline I32 shift_left(I32 a) { return {bits_as<IntVector>(bits_as<UnsignedVector>(a.v) << n)}; }
template <int n>
inline I32 shift_right(I32 a) { return {bits_as<IntVector>(bits_as<UnsignedVector>(a.v) >> n)}; }  // fills with zeros

struct F32 {
    FloatVector v;

    static F32 zero() { return {FloatVector{}}; }
    static F32 broadcast(float x) {
        F32 r;
        for (int i = 0; i < 16; ++i) r.v[i] = x;
        return r;
    }
    static F32 load(const float* p) {
        F32 r;
        std::memcpy(&r.v, p, sizeof r.v);
        return r;
    }
    // The first `count` lanes (0 .. 16); the others are zero and their memory is not touched.
    static F32 load_part(const float* p, int count) {
        F32 r = zero();
        for (int i = 0; i < count; ++i) r.v[i] = p[i];
        return r;
    }
    static F32 load_f16(const uint16_t* p) {
        // The exponent moves over by a product, which is exact and right for subnormal numbers too; infinity and NaN apart.
        I32 half;
        for (int i = 0; i < 16; ++i) half.v[i] = p[i];
        const I32 magnitude = shift_left<13>(half & I32::broadcast(0x7fff));
        const FloatVector scaled = bits_as<FloatVector>(magnitude.v) * 0x1p112f;
        const IntVector special = magnitude.v >= 0x0f800000;
        const I32 bits = select(special, magnitude | I32::broadcast(0x7f800000), {bits_as<IntVector>(scaled)});
        return from_bits(bits | shift_left<16>(half & I32::broadcast(0x8000)));
    }
    static F32 load_bf16(const uint16_t* p) {
        I32 half;
        for (int i = 0; i < 16; ++i) half.v[i] = p[i];
        return from_bits(shift_left<16>(half));
    }
    static F32 from(I32 x) {
        F32 r;
        for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(x.v[i]);
        return r;
    }
    static F32 from_bits(I32 x) { return {bits_as<FloatVector>(x.v)}; }

    void store(float* p) const { std::memcpy(p, &v, sizeof v); }
    void store_part(float* p, int count) const {
        for (int i = 0; i < count; ++i) p[i] = v[i];
    }
    void store_bf16(uint16_t* p) const {  // round to nearest even; NaN stays NaN
        const I32 bits{bits_as<IntVector>(v)};
        const I32 odd = shift_right<16>(bits) & I32::broadcast(1);
        const I32 rounded = bits + (odd + I32::broadcast(0x7fff));
        const I32 result = shift_right<16>(select(v != v, bits | I32::broadcast(0x400000), rounded));
        for (int i = 0; i < 16; ++i) p[i] = static_cast<uint16_t>(result.v[i]);
    }
    void store_f16(uint16_t* p) const;  // round to nearest even

    // Fixed order: halves, quarters, ... of the vector added to each other.
    float reduce_add() const {
        float part[16];
        store(part);
        for (int half = 8; half > 0; half /= 2)
            for (int i = 0; i < half; ++i) part[i] += part[i + half];
        return part[0];
    }
    float reduce_max() const {  // undefined if there is a NaN
        float most = v[0];
        for (int i = 1; i < 16; ++i) most = v[i] > most ? v[i] : most;
        return most;
    }
    bool any_nan() const {
        const IntVector nan = v != v;
        int any = 0;
        for (int i = 0; i < 16; ++i) any |= nan[i];
        return any != 0;
    }
    unsigned from(float x) const {  // the lanes that are at least x, as bits
        unsigned lanes = 0;
        for (int i = 0; i < 16; ++i) lanes |= static_cast<unsigned>(v[i] >= x) << i;
        return lanes;
    }
    int find(float x) const {  // the first lane that equals x, or -1
        for (int i = 0; i < 16; ++i)
            if (v[i] == x) return i;
        return -1;
    }
};

inline F32 operator+(F32 a, F32 b) { return {a.v + b.v}; }
inline F32 operator-(F32 a, F32 b) { return {a.v - b.v}; }
inline F32 operator*(F32 a, F32 b) { return {a.v * b.v}; }
inline F32 operator/(F32 a, F32 b) { return {a.v / b.v}; }
inline F32 select(IntVector mask, F32 a, F32 b) {
    return {bits_as<FloatVector>(select(mask, I32::bits(a), I32::bits(b)).v)};
}
// Of two operands the second, if either is NaN.
inline F32 max(F32 a, F32 b) { return select(a.v > b.v, a, b); }
inline F32 min(F32 a, F32 b) { return select(a.v < b.v, a, b); }

// a * b + c. Rounds twice where the processor has no such instruction: a call of fmaf for each lane would be far slower.
inline F32 fma(F32 a, F32 b, F32 c) {
#if defined(__FP_FAST_FMAF) || defined(__FMA__) || defined(__aarch64__)  // Clang may not define the first
    for (int i = 0; i < 16; ++i) c.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
    return c;
#else
    return {a.v * b.v + c.v};
#endif
}

// To the nearest integer, ties to even, |x| below 2^22: adding 1.5 * 2^23 leaves no bit for a fraction.
inline F32 round(F32 x) {
    const F32 magic = F32::broadcast(12582912.0f);
    return {(x.v + magic.v) - magic.v};
}
inline I32 I32::round(F32 x) {
    const F32 magic = F32::broadcast(12582912.0f);
    return I32::bits({x.v + magic.v}) - I32::bits(magic);
}
inline I32 I32::bits(F32 x) { return {bits_as<IntVector>(x.v)}; }

// x * 2^n for whole numbers n from -252 to 254. In two steps, of which each factor is a normal number: the last one rounds.
inline F32 scale_by_power(F32 x, F32 n) {
    const F32 half = round(n * F32::broadcast(0.5f));
    const I32 bias = I32::broadcast(127);
    const F32 first = F32::from_bits(shift_left<23>(I32::round(half) + bias));
    const F32 second = F32::from_bits(shift_left<23>(I32::round(n - half) + bias));
    return x * first * second;
}

inline void F32::store_f16(uint16_t* p) const {
    const I32 bits = I32::bits(*this);
    const I32 magnitude = bits & I32::broadcast(0x7fffffff);
    // Normal: the exponent moves over and 13 bits are rounded away. Subnormal: adding 1/2 aligns the last bit with 2^-24.
    const I32 odd = shift_right<13>(magnitude) & I32::broadcast(1);
    const I32 normal = shift_right<13>(magnitude - I32::broadcast(112 << 23) + (odd + I32::broadcast(0xfff)));
    const F32 half = F32::broadcast(0.5f);
    const I32 small = I32::bits(F32::from_bits(magnitude) + half) - I32::bits(half);
    I32 result = select(magnitude.v < (113 << 23), small, normal);
    result = select(magnitude.v >= 0x477ff000, I32::broadcast(0x7c00), result);
    result = select(magnitude.v > 0x7f800000, I32::broadcast(0x7e00), result);
    result = result | (shift_right<16>(bits) & I32::broadcast(0x8000));
    for (int i = 0; i < 16; ++i) p[i] = static_cast<uint16_t>(result.v[i]);
}

// The 16 bytes that nibbles stand for.
struct Levels {
    uint8_t v[16];
    explicit Levels(const uint8_t* p) { std::memcpy(v, p, sizeof v); }
};

// 64 bytes without a sign: four neighbouring columns in each lane.
struct U8x64 {
    ByteVector v;

    static U8x64 load(const uint8_t* p) {
        U8x64 r;
        std::memcpy(&r.v, p, sizeof r.v);
        return r;
    }
    void store(uint8_t* p) const { std::memcpy(p, &v, sizeof v); }
    U8x64 low_nibbles() const { return {v & 15}; }
    U8x64 high_nibbles() const { return {v >> 4}; }
    U8x64 lookup(const Levels& levels) const {
        U8x64 r;
        for (int i = 0; i < 64; ++i) r.v[i] = levels.v[v[i]];
        return r;
    }
    I32 words() const { return {bits_as<IntVector>(v)}; }
};

// acc + the sum of the four products (w - kByteOffset) * x in each lane, exactly; x holds four int8, the same in each lane.
constexpr int kByteOffset = 0;
inline I32 dot(I32 acc, U8x64 w, I32 x) {
    const int32_t quad = x.v[0];
    const I32 words = w.words();
    const I32 byte = I32::broadcast(255);
    acc.v += (words & byte).v * static_cast<int8_t>(quad);
    acc.v += (shift_right<8>(words) & byte).v * static_cast<int8_t>(quad >> 8);
    acc.v += (shift_right<16>(words) & byte).v * static_cast<int8_t>(quad >> 16);
    acc.v += shift_right<24>(words).v * static_cast<int8_t>(quad >> 24);
    return acc;
}
// The same for bytes up to 15, without the offset.
inline I32 dot_nibbles(I32 acc, U8x64 w, I32 x) { return dot(acc, w, x); }

// Tiles of a matrix product, blocks x rows, as many as the registers hold.
constexpr int kCodeTileBlocks = 1, kCodeTileRows = 2;
constexpr int kFewRows = 2;  // up to so many, weights go from memory through registers, and no tiles are cut
constexpr int kFloatTileBlocks = 1, kFloatTileRows = 2;

}  // namespace corral::CORRAL_NAMESPACE

#include "bf16_pairs.h"
#include "exp.h"
