// Prints what a barrier and a dispatch cost:   pool_latency [threads]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "cpu.h"
#include "pool.h"

using corral::Pool;
using Clock = std::chrono::steady_clock;

namespace {

constexpr int kBarriers = 1000;

void barriers(void* pool, int) {
    for (int i = 0; i < kBarriers; ++i) static_cast<Pool*>(pool)->barrier();
}

void nothing(void*, int) {}

// Nanoseconds of `Pool::run` after a pause: the least, and the median.
void time(const char* what, Pool& pool, Pool::Task task, int repeats, int per, std::chrono::microseconds rest) {
    std::vector<double> times;
    for (int i = 0; i < repeats; ++i) {
        for (const auto end = Clock::now() + rest; Clock::now() < end;) {
        }
        const auto begin = Clock::now();
        if (!pool.run(task, &pool)) std::abort();
        times.push_back(std::chrono::duration<double, std::nano>(Clock::now() - begin).count() / per);
    }
    std::sort(times.begin(), times.end());
    std::printf("%-34s least %9.0f ns, median %9.0f ns\n", what, times[0], times[times.size() / 2]);
}

}  // namespace

int main(int count, char** words) {
    Pool pool(count > 1 ? std::atoi(words[1]) : corral::usable_cores());
    std::printf("%d threads\n", pool.threads());
    using std::chrono::microseconds;
    time("barrier", pool, barriers, 50, kBarriers, microseconds(0));
    time("dispatch, threads spinning", pool, nothing, 1000, 1, microseconds(5));
    time("dispatch, threads asleep", pool, nothing, 200, 1, microseconds(1000));
}
