// e^x, for any of the instruction sets.
#pragma once

namespace corral::CORRAL_NAMESPACE {

// e^x = 2^n e^r with |r| <= ln(2) / 2, and e^r = 1 + r + r^2 q(r), q fitted to the relative error (0.1 ulp).
// The two last operations round: below 2 ulp in all. 0 below -104 (and for -inf), infinity above 88.8; NaN stays NaN.
inline F32 exp(F32 x) {
    x = max(F32::broadcast(-105.0f), min(F32::broadcast(89.0f), x));  // of two operands, the second survives a NaN
    const F32 n = round(x * F32::broadcast(1.44269504f));
    F32 r = fma(n, F32::broadcast(-0.693359375f), x);  // ln(2) in two parts: the first has few bits, so this is exact
    r = fma(n, F32::broadcast(2.12194440e-4f), r);
    F32 q = F32::broadcast(0.0013751382f);
    q = fma(q, r, F32::broadcast(0.008368923f));
    q = fma(q, r, F32::broadcast(0.041669533f));
    q = fma(q, r, F32::broadcast(0.16666518f));
    q = fma(q, r, F32::broadcast(0.49999988f));
    return scale_by_power(fma(r * r, q, r) + F32::broadcast(1.0f), n);
}

}  // namespace corral::CORRAL_NAMESPACE
