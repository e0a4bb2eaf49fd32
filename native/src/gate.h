// A count that only grows, and threads that wait until it reaches a number: first spinning, then asleep.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#if defined(CORRAL_X86)
#include <immintrin.h>
#endif

namespace corral {

// Tells the processor that this is a spin loop.
inline void pause() {
#if defined(CORRAL_X86)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Memory that a thread reads next: it asks for it while it waits.
struct Ahead {
    const uint8_t* begin = nullptr;
    const uint8_t* end = nullptr;

    // Asks for the next line, if there is one.
    bool ask() {
        if (begin >= end) return false;
        __builtin_prefetch(begin, 0, 2);
        begin += 64;
        return true;
    }
};

// What a thread does before it sleeps: it spins for a time, then offers its core to others so many times.
struct Patience {
    std::chrono::microseconds spin;
    int yields;
};

class alignas(64) Gate {
public:
    // Returns the new count. Whoever completes what others wait for calls `release`.
    uint64_t add() { return count_.fetch_add(1) + 1; }

    void release() {
        if (sleepers_.load() == 0) return;
        { std::lock_guard<std::mutex> lock(mutex_); }  // a sleeper is before its look at the count, or asleep: none between
        condition_.notify_all();
    }

    void wait(uint64_t target, const Patience& patience, Ahead& ahead) {
        if (spin(target, patience.spin, ahead) || yield(target, patience.yields)) return;
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);  // before the look at the count, as `add` is before the look at the sleepers
        condition_.wait(lock, [&] { return reached(target); });
        sleepers_.fetch_sub(1);
    }

private:
    bool reached(uint64_t target) const { return count_.load() >= target; }

    bool spin(uint64_t target, std::chrono::microseconds time, Ahead& ahead) const {
        constexpr int kLooksPerTime = 32;
        const auto end = std::chrono::steady_clock::now() + time;
        do {
            for (int i = 0; i < kLooksPerTime; ++i) {
                if (reached(target)) return true;
                if (!ahead.ask()) pause();
            }
        } while (std::chrono::steady_clock::now() < end);
        return false;
    }

    bool yield(uint64_t target, int times) const {
        for (int i = 0; i < times; ++i) {
            std::this_thread::yield();
            if (reached(target)) return true;
        }
        return false;
    }

    std::atomic<uint64_t> count_{0};
    std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable condition_;
};

}  // namespace corral
