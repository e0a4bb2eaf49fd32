// Normalization, gating and rotation, forward and backward.
#pragma once
#include "elements.h"

namespace corral::CORRAL_NAMESPACE {

// x / sqrt(mean(x^2) + eps), rounded to the type, times the weight.
template <class Elements>
inline void norm_rows(const corral_norm& call, int64_t begin, int64_t end) {
    using Element = typename Elements::Element;
    const Element* weight = static_cast<const Element*>(call.weight);
    for (int64_t row = begin; row < end; ++row) {
        const Element* x = static_cast<const Element*>(call.x) + row * call.columns;
        Element* out = static_cast<Element*>(call.out) + row * call.columns;
        F32 sums[4] = {F32::zero(), F32::zero(), F32::zero(), F32::zero()};
        each_part(0, call.columns, [&](int64_t i, int lanes) {
            const F32 v = Elements::load_part(x + i, lanes);
            F32& sum = sums[i / kLanes % 4];
            sum = fma(v, v, sum);
        });
        const float sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])).reduce_add();
        const float scale = 1.0f / __builtin_sqrtf(sum / static_cast<float>(call.columns) + call.eps);
        call.scales[row] = scale;
        each_part(0, call.columns, [&](int64_t i, int lanes) {
            const F32 scaled = Elements::round(Elements::load_part(x + i, lanes) * F32::broadcast(scale));
            Elements::store_part(scaled * Elements::load_part(weight + i, lanes), out + i, lanes);
        });
    }
}

// With y = x * scale and g = out' * weight:   x' = scale (g - y mean(g y)),   weight' = sum of out' y over the rows.
template <class Elements>
inline void norm_rows_backward(const corral_norm& call, int64_t begin, int64_t end, float* partial) {
    using Element = typename Elements::Element;
    const Element* weight = static_cast<const Element*>(call.weight);
    if (partial) std::memset(partial, 0, call.columns * sizeof(float));
    for (int64_t row = begin; row < end; ++row) {
        const Element* x = static_cast<const Element*>(call.x) + row * call.columns;
        const Element* out_grad = static_cast<const Element*>(call.out_grad) + row * call.columns;
        Element* x_grad = static_cast<Element*>(call.x_grad) + row * call.columns;
        const F32 scale = F32::broadcast(call.scales[row]);
        F32 sums[2] = {F32::zero(), F32::zero()};
        each_part(0, call.columns, [&](int64_t i, int lanes) {
            const F32 y = Elements::load_part(x + i, lanes) * scale, slope = Elements::load_part(out_grad + i, lanes);
            F32& sum = sums[i / kLanes % 2];
            sum = fma(slope * Elements::load_part(weight + i, lanes), y, sum);
            if (partial) fma(slope, y, F32::load_part(partial + i, lanes)).store_part(partial + i, lanes);
        });
        const F32 mean = F32::broadcast((sums[0] + sums[1]).reduce_add() / static_cast<float>(call.columns));
        each_part(0, call.columns, [&](int64_t i, int lanes) {
            const F32 y = Elements::load_part(x + i, lanes) * scale;
            const F32 slope = Elements::load_part(out_grad + i, lanes) * Elements::load_part(weight + i, lanes);
            Elements::store_part((slope - y * mean) * scale, x_grad + i, lanes);
        });
    }
}

template <class Elements>
inline void norm_weight_grad(const corral_norm& call, const float* partials, int64_t count, int64_t begin, int64_t end) {
    each_part(begin, end, [&](int64_t i, int lanes) {
        F32 sum = F32::zero();
        for (int64_t k = 0; k < count; ++k) sum = sum + F32::load_part(partials + k * call.columns + i, lanes);
        Elements::store_part(sum, static_cast<typename Elements::Element*>(call.weight_grad) + i, lanes);
    });
}

inline F32 sigmoid(F32 x) {
    const F32 one = F32::broadcast(1.0f);
    return one / (one + exp(F32::zero() - x));
}

// gate * sigmoid(gate) * up
template <class Elements>
inline void gate_elements(const corral_gate& call, int64_t begin, int64_t end) {
    using Element = typename Elements::Element;
    const Element *gates = static_cast<const Element*>(call.gate), *ups = static_cast<const Element*>(call.up);
    each_part(begin, end, [&](int64_t i, int lanes) {
        const F32 gate = Elements::load_part(gates + i, lanes), up = Elements::load_part(ups + i, lanes);
        Elements::store_part(gate * sigmoid(gate) * up, static_cast<Element*>(call.out) + i, lanes);
    });
}

template <class Elements>
inline void gate_elements_backward(const corral_gate& call, int64_t begin, int64_t end) {
    using Element = typename Elements::Element;
    const Element *gates = static_cast<const Element*>(call.gate), *ups = static_cast<const Element*>(call.up);
    const F32 one = F32::broadcast(1.0f);
    each_part(begin, end, [&](int64_t i, int lanes) {
        const F32 gate = Elements::load_part(gates + i, lanes), up = Elements::load_part(ups + i, lanes);
        const F32 slope = Elements::load_part(static_cast<const Element*>(call.out_grad) + i, lanes), open = sigmoid(gate);
        Elements::store_part(slope * up * open * fma(gate, one - open, one), static_cast<Element*>(call.gate_grad) + i, lanes);
        Elements::store_part(slope * gate * open, static_cast<Element*>(call.up_grad) + i, lanes);
    });
}

// Dimension i of a head turns with i + head_dim / 2. Cosines and sines count as rounded to the type.
template <class Elements>
inline void rotate_rows(const corral_rotation& call, int64_t begin, int64_t end) {
    using Element = typename Elements::Element;
    const int64_t half = call.head_dim / 2, width = call.heads * int64_t{call.head_dim};
    const F32 turn = F32::broadcast(call.back ? -1.0f : 1.0f);
    for (int64_t row = begin; row < end; ++row) {
        const Element* x = static_cast<const Element*>(call.x) + row * width;
        Element* out = static_cast<Element*>(call.out) + row * width;
        each_part(0, half, [&](int64_t i, int lanes) {
            const F32 cos = Elements::round(F32::load_part(call.cos + row * half + i, lanes));
            const F32 sin = Elements::round(F32::load_part(call.sin + row * half + i, lanes)) * turn;
            for (int64_t at = i; at < width; at += 2 * half) {
                const F32 first = Elements::load_part(x + at, lanes), second = Elements::load_part(x + at + half, lanes);
                Elements::store_part(first * cos - second * sin, out + at, lanes);
                Elements::store_part(second * cos + first * sin, out + at + half, lanes);
            }
        });
    }
}

}  // namespace corral::CORRAL_NAMESPACE
