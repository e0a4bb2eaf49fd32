#include "pool.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu.h"
#include "float_mode.h"
#include "gate.h"

namespace corral {
namespace {

// With more threads than cores, the one that is waited for needs this core: a few yields are a third of the price of a sleep.
constexpr Patience kAlone{std::chrono::microseconds(100), 0};
constexpr Patience kInACrowd{std::chrono::microseconds(0), 16};

void name_thread(int index) {
    const std::string name = "corral-" + std::to_string(index);
#if defined(__APPLE__)
    pthread_setname_np(name.c_str());
#else
    pthread_setname_np(pthread_self(), name.c_str());
#endif
}

// While it lives, new threads take no signals: those are for the application's own threads.
class SignalsBlocked {
public:
    SignalsBlocked() {
        sigset_t everything;
        sigfillset(&everything);
        pthread_sigmask(SIG_SETMASK, &everything, &before_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

private:
    sigset_t before_;
};

}  // namespace

// The threads of one process. After a fork the child leaves its copy alone, locks and all, and makes another.
struct Pool::Crew {
    const pid_t process = getpid();
    const int threads;
    const Patience patience;
    std::mutex running;       // held for the length of a run
    bool stopping = false;
    Task task = nullptr;
    void* context = nullptr;
    Gate dispatched;          // counts runs
    Gate arrived;             // counts arrivals at barriers: barrier b is past when the count is b * threads
    std::vector<std::thread> workers;

    explicit Crew(int count)
        : threads(count), patience(count > usable_cores() ? kInACrowd : kAlone) {}

    bool start() {
        const SignalsBlocked blocked;
        try {
            for (int i = 1; i < threads; ++i) workers.emplace_back([this, i] { work(i); });
        } catch (const std::system_error&) {
            stop();
            return false;
        }
        return true;
    }

    void work(int index) {
        name_thread(index);
        const StandardFloats mode;
        Ahead nothing;
        for (uint64_t turn = 1;; ++turn) {
            dispatched.wait(turn, patience, nothing);
            if (stopping) return;
            task(context, index);
            arrive();
        }
    }

    bool run(Task new_task, void* new_context) {
        const std::lock_guard<std::mutex> lock(running);
        if (stopping) return false;
        const StandardFloats mode;
        task = new_task;
        context = new_context;
        dispatched.add();
        dispatched.release();
        task(context, 0);
        Ahead nothing;
        barrier(nothing);
        return true;
    }

    // Returns the count that the barrier is past at.
    uint64_t arrive() {
        const uint64_t count = arrived.add();
        const uint64_t full = (count + threads - 1) / threads * threads;
        if (count == full) arrived.release();
        return full;
    }

    void barrier(Ahead& ahead) { arrived.wait(arrive(), patience, ahead); }

    void stop() {
        const std::lock_guard<std::mutex> lock(running);
        if (!stopping) {
            stopping = true;
            dispatched.add();
            dispatched.release();
        }
        for (std::thread& worker : workers)
            if (worker.joinable()) worker.join();
    }
};

Pool::Pool(int threads) : threads_(std::max(1, threads)), crew_(nullptr) {
    auto crew = std::make_unique<Crew>(threads_);
    if (crew->start()) crew_ = crew.release();
}

Pool::~Pool() {
    close();
    Crew* crew = crew_;
    if (crew != nullptr && crew->process == getpid()) delete crew;
}

// This process's crew; null if it cannot be started.
Pool::Crew* Pool::crew() {
    Crew* old = crew_;
    if (old == nullptr || old->process == getpid()) return old;
    auto crew = std::make_unique<Crew>(threads_);
    if (!crew->start()) return nullptr;
    if (crew_.compare_exchange_strong(old, crew.get())) return crew.release();
    crew->stop();  // another thread of the child was first
    return old;
}

bool Pool::run(Task task, void* context) {
    if (closed_) return false;
    Crew* own = crew();
    return own != nullptr && own->run(task, context);
}

void Pool::barrier(Ahead& ahead) { crew_.load(std::memory_order_relaxed)->barrier(ahead); }

void Pool::close() {
    closed_ = true;
    Crew* crew = crew_;
    if (crew != nullptr && crew->process == getpid()) crew->stop();
}

}  // namespace corral
