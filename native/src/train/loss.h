// The logarithms of probabilities of given tokens, and their gradient, which takes the place of the logits.
#pragma once
#include "elements.h"

namespace corral::CORRAL_NAMESPACE {

template <class Elements>
class TokenLoss {
    using Element = typename Elements::Element;

public:
    TokenLoss(const corral_token_loss& call, int64_t row)
        : call_(call), row_(row), logits_(static_cast<Element*>(call.logits) + row * call.columns), target_(call.targets[row]) {}

    void logprob() const {
        const float most = maximum(), target = at(target_);
        const double beyond = __builtin_log(sum_from(most));
        const float normalizer = static_cast<float>(most + beyond);
        call_.normalizers[row_] = normalizer;
        call_.logprobs[row_] = static_cast<float>(double{target} - most - beyond);
        call_.correct[row_] = target == most && is_first(most);
        if (call_.coefficients) differentiate(normalizer);
    }

    void gradient() const { differentiate(call_.normalizers[row_]); }

private:
    float at(int64_t i) const {
        float lanes[kLanes];
        Elements::load_part(logits_ + i, 1).store(lanes);
        return lanes[0];
    }

    // NaN if there is one.
    float maximum() const {
        F32 most[2] = {F32::broadcast(-__builtin_inff()), F32::broadcast(-__builtin_inff())};
        F32 nothing = F32::zero();  // NaN where there was one: max forgets it
        each_part(0, call_.columns, [&](int64_t i, int lanes) {
            F32& own = most[i / kLanes % 2];
            F32 x = Elements::load_part(logits_ + i, lanes);
            nothing = nothing + (x - x);
            if (lanes < kLanes) x = filled(x, lanes);
            own = max(x, own);
        });
        return nothing.any_nan() ? with_infinities(max(most[0], most[1]).reduce_max()) : max(most[0], most[1]).reduce_max();
    }

    // x - x is NaN for infinities too: logits of minus infinity are lawful.
    float with_infinities(float most) const {
        for (int64_t i = 0; i < call_.columns; ++i)
            if (const float x = at(i); x != x) return x;
        return most;
    }

    static F32 filled(F32 x, int lanes) {
        float part[kLanes];
        x.store(part);
        for (int i = lanes; i < kLanes; ++i) part[i] = -__builtin_inff();
        return F32::load(part);
    }

    // The sum of e^(x - most): 32 vectors at a time go into a double.
    double sum_from(float most) const {
        constexpr int64_t kPiece = 32 * kLanes;
        double sum = 0;
        for (int64_t first = 0; first < call_.columns; first += kPiece) {
            F32 part = F32::zero();
            each_part(first, fewer(first + kPiece, call_.columns), [&](int64_t i, int lanes) {
                const F32 x = Elements::load_part(logits_ + i, lanes) - F32::broadcast(most);
                part = part + exp(lanes < kLanes ? filled(x, lanes) : x);
            });
            sum += part.reduce_add();
        }
        return sum;
    }

    // Of several largest logits the first one counts.
    bool is_first(float most) const {
        for (int64_t i = 0; i < target_ / kLanes * kLanes; i += kLanes)
            if (Elements::load(logits_ + i).find(most) >= 0) return false;
        for (int64_t i = target_ / kLanes * kLanes; i < target_; ++i)
            if (at(i) == most) return false;
        return true;
    }

    // coefficient * (softmax - one at the target)
    void differentiate(float normalizer) const {
        const float coefficient = call_.coefficients[row_], target = at(target_);
        const F32 factor = F32::broadcast(coefficient), offset = F32::broadcast(normalizer);
        each_part(0, call_.columns, [&](int64_t i, int lanes) {
            Elements::store_part(exp(Elements::load_part(logits_ + i, lanes) - offset) * factor, logits_ + i, lanes);
        });
        const F32 probability = exp(F32::broadcast(target) - offset);
        Elements::store_part((probability - F32::broadcast(1.0f)) * factor, logits_ + target_, 1);
    }

    const corral_token_loss& call_;
    const int64_t row_;
    Element* const logits_;
    const int64_t target_;
};

}  // namespace corral::CORRAL_NAMESPACE
