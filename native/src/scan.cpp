// Rows of logits, read by all threads of a pool.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "corral_native.h"
#include "kernels.h"
#include "pool.h"

namespace {

using corral::Kernels;
using corral::Pool;

const Kernels& of(const corral_kernels* handle) { return *reinterpret_cast<const Kernels*>(handle); }

// Calls body(row) for every row.
template <typename Body> int32_t each_row(corral_pool* pool, int64_t rows, const Body& body) {
    struct Work {
        const Body& body;
        const int64_t rows;
        std::atomic<int64_t> next{0};
        std::atomic<bool> failed{false};
    } work{body, rows};
    const auto task = [](void* context, int) {
        Work& own = *static_cast<Work*>(context);
        try {
            for (int64_t row; (row = own.next.fetch_add(1)) < own.rows;) own.body(row);
        } catch (...) {
            own.failed = true;
        }
    };
    if (!reinterpret_cast<Pool*>(pool)->run(task, &work)) return CORRAL_CLOSED;
    return work.failed ? CORRAL_OUT_OF_MEMORY : CORRAL_DONE;
}

}  // namespace

int32_t corral_find_best(const corral_kernels* kernels, corral_pool* pool, const corral_best* call) {
    const Kernels& k = of(kernels);
    return each_row(pool, call->rows, [&](int64_t row) {
        const float* x = call->logits + row * call->columns;
        std::vector<float> maxima(call->folds);
        k.column_maxima(x, call->columns / call->folds, call->folds, maxima.data());
        for (float& most : maxima)
            if (std::isnan(most)) most = std::numeric_limits<float>::infinity();  // which an order needs to have none of
        const auto ranked = maxima.begin() + std::min(call->ranks[row], call->folds) - 1;
        std::nth_element(maxima.begin(), ranked, maxima.end(), std::greater<float>());
        const float bound = std::max(*ranked, call->lowest);
        call->bounds[row] = bound;
        call->counts[row] = k.find_from(x, call->columns, bound, call->places + row * call->room, call->room);
    });
}

int32_t corral_exp_sums(const corral_kernels* kernels, corral_pool* pool, const float* logits, int64_t rows, int64_t columns,
                        const float* best, const float* factors, float* sums) {
    return each_row(pool, rows, [&](int64_t row) {
        sums[row] = static_cast<float>(of(kernels).exp_sum(logits + row * columns, columns, best[row], factors[row]));
    });
}
