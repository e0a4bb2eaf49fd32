// The rounding mode, and whether tiny numbers count as zero, are each thread's own: a caller's setting would make its share
// of a result differ from the other threads'.
#pragma once
#include <cstdint>

#if defined(CORRAL_X86)
#include <xmmintrin.h>
#endif

namespace corral {

// Round to nearest, keep subnormal numbers, raise no signals; as it was when this goes away.
class StandardFloats {
public:
    StandardFloats() : before_(get()) { set(kStandard); }
    ~StandardFloats() { set(before_); }
    StandardFloats(const StandardFloats&) = delete;
    StandardFloats& operator=(const StandardFloats&) = delete;

private:
#if defined(CORRAL_X86)
    static constexpr uint64_t kStandard = 0x1F80;
    static uint64_t get() { return _mm_getcsr(); }
    static void set(uint64_t mode) { _mm_setcsr(static_cast<uint32_t>(mode)); }
#elif defined(__aarch64__)
    static constexpr uint64_t kStandard = 0;
    static uint64_t get() {
        uint64_t mode;
        __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
        return mode;
    }
    static void set(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
    static constexpr uint64_t kStandard = 0;
    static uint64_t get() { return 0; }
    static void set(uint64_t) {}
#endif
    const uint64_t before_;
};

}  // namespace corral
