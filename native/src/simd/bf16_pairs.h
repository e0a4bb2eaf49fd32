// Products of pairs of bfloat16 where the processor has no instruction for them: two fused multiply-adds, the even column first.
#pragma once

namespace corral::CORRAL_NAMESPACE {

// Pairs of neighbouring columns; the pair of an activation is the same in each lane.
struct Bf16Pairs {
    F32 even, odd;
    static Bf16Pairs split(I32 pairs) {
        const I32 high = I32::broadcast(static_cast<int32_t>(0xffff0000));
        return {F32::from_bits(shift_left<16>(pairs)), F32::from_bits(pairs & high)};
    }
    static Bf16Pairs load(const uint16_t* p) { return split(I32::load(reinterpret_cast<const int32_t*>(p))); }
    static Bf16Pairs broadcast(const uint16_t* p) {
        int32_t pair;
        std::memcpy(&pair, p, sizeof pair);
        return split(I32::broadcast(pair));
    }
};
inline F32 dot(F32 acc, Bf16Pairs w, Bf16Pairs x) { return fma(w.odd, x.odd, fma(w.even, x.even, acc)); }

}  // namespace corral::CORRAL_NAMESPACE
