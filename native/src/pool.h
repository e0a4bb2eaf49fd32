// A pool of threads that does one task at a time, each task by all threads at once.
//
// One `run` covers many operations with barriers between them, so that a step of a model costs one dispatch. Threads that
// wait spin for a while, since the next operation mostly comes within microseconds, and then sleep.
#pragma once
#include <atomic>

#include "gate.h"

namespace corral {

class Pool {
public:
    using Task = void (*)(void* context, int thread);

    // `threads` counts the caller of `run`: that many less one are started. See `ready`.
    explicit Pool(int threads);
    ~Pool();  // closes; no other call may be under way
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    // Whether the threads could be started.
    bool ready() const { return crew_.load() != nullptr; }
    int threads() const { return threads_; }

    // Calls task(context, i) for every i < threads() at the same time, 0 on this thread, and returns when all have returned.
    // The task must not throw, and not call `run` or `close`. Calls from several threads take turns. In a process that was
    // forked the first call starts new threads. False, and nothing done, if the pool is closed or has no threads.
    [[nodiscard]] bool run(Task task, void* context);

    // In a task, by every thread: nobody goes on before all are here. Who waits asks for memory `ahead` meanwhile.
    void barrier(Ahead& ahead);
    void barrier() {
        Ahead nothing;
        barrier(nothing);
    }

    // Waits for runs under way, then ends the threads; later runs are refused.
    void close();

private:
    struct Crew;
    Crew* crew();

    const int threads_;
    std::atomic<bool> closed_{false};
    std::atomic<Crew*> crew_;
};

}  // namespace corral
