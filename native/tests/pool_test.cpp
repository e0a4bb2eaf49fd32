#include "pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "check.h"

using corral::Pool;
using Clock = std::chrono::steady_clock;

namespace {

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif

// Every thread writes its cell, and after a barrier reads all of the others', many times over.
struct Relay {
    Pool& pool;
    int rounds;
    std::vector<int64_t> cells;  // plain: the barrier orders them
    std::atomic<int> wrong{0};

    Relay(Pool& p, int n) : pool(p), rounds(n), cells(p.threads(), -1) {}

    static void work(void* context, int thread) {
        Relay& self = *static_cast<Relay*>(context);
        for (int round = 0; round < self.rounds; ++round) {
            self.cells[thread] = round;
            self.pool.barrier();
            for (int64_t cell : self.cells) self.wrong += cell != round;
            self.pool.barrier();
        }
    }

    bool run() { return pool.run(work, this) && wrong == 0; }
};

void nobody_passes_a_barrier_early(int threads, int runs, int rounds) {
    Pool pool(threads);
    CHECK(pool.ready() && pool.threads() == threads);
    for (int i = 0; i < runs; ++i) CHECK(Relay(pool, rounds).run());
}

void sleeping_threads_wake_up() {
    Pool pool(3);
    for (int i = 0; i < 20; ++i) {
        CHECK(Relay(pool, 2).run());
        std::this_thread::sleep_for(std::chrono::milliseconds(2));  // longer than they spin
    }
    // The same within a task: one thread keeps the others waiting at the barrier.
    CHECK(pool.run(
        [](void* context, int thread) {
            if (thread == 1) std::this_thread::sleep_for(std::chrono::milliseconds(5));
            static_cast<Pool*>(context)->barrier();
        },
        &pool));
}

void callers_take_turns() {
    Pool pool(2);
    std::vector<std::thread> callers;
    for (int i = 0; i < 4; ++i)
        callers.emplace_back([&] {
            for (int j = 0; j < 50; ++j) CHECK(Relay(pool, 3).run());
        });
    for (std::thread& caller : callers) caller.join();
}

void several_pools_work_at_once() {
    Pool first(2), second(3);
    std::thread other([&] { CHECK(Relay(second, 500).run()); });
    CHECK(Relay(first, 500).run());
    other.join();
}

void a_closed_pool_refuses() {
    Pool pool(3);
    CHECK(Relay(pool, 1).run());
    pool.close();
    pool.close();
    CHECK(!Relay(pool, 1).run());
}

void closing_waits_for_a_run_under_way() {
    for (int i = 0; i < 20; ++i) {
        Pool pool(2);
        std::atomic<bool> started{false};
        struct Slow {
            std::atomic<bool>& started;
            std::atomic<int> finished{0};
        } slow{started};
        bool done = false;
        std::thread caller([&] {
            done = pool.run(
                [](void* context, int) {
                    Slow& self = *static_cast<Slow*>(context);
                    self.started = true;
                    std::this_thread::sleep_for(std::chrono::milliseconds(1));
                    ++self.finished;
                },
                &slow);
        });
        while (!started) std::this_thread::yield();
        pool.close();
        CHECK(slow.finished == 2);
        caller.join();
        CHECK(done);
    }
}

// Every caller ends, with its work done or refused, whenever the pool is closed.
void closing_races_with_callers() {
    for (int i = 0; i < 30; ++i) {
        Pool pool(2);
        std::vector<std::thread> callers;
        for (int j = 0; j < 3; ++j)
            callers.emplace_back([&] {
                for (;;) {
                    Relay relay(pool, 2);
                    const bool done = pool.run(Relay::work, &relay);
                    CHECK(relay.wrong == 0);
                    if (!done) return;
                }
            });
        std::this_thread::sleep_for(std::chrono::microseconds(50 * i));
        pool.close();
        for (std::thread& caller : callers) caller.join();
    }
}

int exit_status_of_child(void (*child)(Pool&), Pool& pool) {
    const pid_t process = fork();
    if (process == 0) {
        alarm(20);  // rather than hang
        child(pool);
        _exit(0);
    }
    int status = -1;
    waitpid(process, &status, 0);
    return status;
}

void a_forked_child_has_threads_of_its_own() {
    auto pool = std::make_unique<Pool>(3);
    CHECK(Relay(*pool, 5).run());
    CHECK(exit_status_of_child([](Pool& own) { CHECK(Relay(own, 50).run()); CHECK(Relay(own, 50).run()); }, *pool) == 0);
    CHECK(exit_status_of_child([](Pool& own) { own.close(); CHECK(!Relay(own, 1).run()); }, *pool) == 0);
    CHECK(exit_status_of_child([](Pool& own) { own.~Pool(); }, *pool) == 0);
    CHECK(exit_status_of_child([](Pool& own) { CHECK(Relay(own, 5).run()); own.~Pool(); }, *pool) == 0);
    CHECK(Relay(*pool, 5).run());  // the parent's are as they were
}

void a_fork_in_the_middle_of_a_run_is_survived() {
    Pool pool(2);
    std::atomic<bool> stop{false};
    std::thread busy([&] {
        while (!stop) CHECK(Relay(pool, 20).run());
    });
    for (int i = 0; i < 20; ++i)
        CHECK(exit_status_of_child([](Pool& own) { CHECK(Relay(own, 20).run()); own.close(); }, pool) == 0);
    stop = true;
    busy.join();
}

// Whether this thread rounds up: seen in a sum, since fegetround looks at another unit's setting on x86.
bool rounds_up() {
    volatile float one = 1.0f, little = 1e-10f;
    return one + little > 1.0f;
}

void the_callers_rounding_mode_is_not_the_tasks() {
    std::fesetround(FE_UPWARD);
    Pool pool(2);
    struct Seen {
        bool up[2];
    } seen{};
    CHECK(pool.run([](void* context, int thread) { static_cast<Seen*>(context)->up[thread] = rounds_up(); }, &seen));
    CHECK(!seen.up[0] && !seen.up[1]);
    CHECK(rounds_up());
    std::fesetround(FE_TONEAREST);
}

}  // namespace

int main(int argc, char** argv) {
    const bool forks = argc < 2 || std::strcmp(argv[1], "--without-forks") != 0;
    for (int threads : {1, 2, 3, 8}) nobody_passes_a_barrier_early(threads, 20, 50);
    const auto begin = Clock::now();
    nobody_passes_a_barrier_early(64, 5, 40);
    std::printf("64 threads, 400 barriers: %.1f ms\n", std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
    sleeping_threads_wake_up();
    callers_take_turns();
    several_pools_work_at_once();
    a_closed_pool_refuses();
    closing_waits_for_a_run_under_way();
    closing_races_with_callers();
    the_callers_rounding_mode_is_not_the_tasks();
    if (forks && !kThreadSanitizer) {  // which does not follow threads that are started after a fork
        a_forked_child_has_threads_of_its_own();
        a_fork_in_the_middle_of_a_run_is_survived();
    }
    std::puts("pool: all well");
}
