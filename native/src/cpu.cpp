#include "cpu.h"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

#if defined(CORRAL_X86)
#include <cpuid.h>
#elif defined(CORRAL_ARM64) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace corral {
namespace {

#if defined(CORRAL_X86)

struct Registers {
    uint32_t a = 0, b = 0, c = 0, d = 0;
    Registers(uint32_t leaf, uint32_t subleaf) { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};

// The register states that the operating system keeps for a thread (XCR0). Asked for in assembly: the intrinsic would need
// -mxsave for a file that has to run anywhere.
uint64_t kept_states() {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t{high} << 32 | low;
}

bool all(uint64_t value, uint64_t bits) { return (value & bits) == bits; }
constexpr uint64_t bit(int index) { return uint64_t{1} << index; }

struct Features {
    bool avx2 = false, avx512vnni = false, avx512bf16 = false;

    Features() {
        const Registers basic(1, 0), extended(7, 0), more(7, 1);
        const bool os_saves = all(basic.c, bit(27));  // OSXSAVE: xgetbv exists
        const uint64_t states = os_saves ? kept_states() : 0;
        const uint64_t ymm = bit(1) | bit(2);                     // xmm, ymm
        const uint64_t zmm = ymm | bit(5) | bit(6) | bit(7);      // masks, zmm0-15, zmm16-31
        // FMA, AVX, F16C; AVX2
        avx2 = all(states, ymm) && all(basic.c, bit(12) | bit(28) | bit(29)) && all(extended.b, bit(5));
        // F, DQ, BW, VL; VNNI
        avx512vnni = avx2 && all(states, zmm) && all(extended.b, bit(16) | bit(17) | bit(30) | bit(31)) &&
                     all(extended.c, bit(11));
        avx512bf16 = avx512vnni && all(more.a, bit(5));
    }
};

#elif defined(CORRAL_ARM64)

struct Features {
#if defined(__linux__)
    // "asimddp" in /proc/cpuinfo. The number is part of the kernel's interface; older systems' headers have no name for it.
    const bool dot_products = (getauxval(AT_HWCAP) & 1ul << 20) != 0;
#elif defined(__APPLE__)
    const bool dot_products = true;  // every Mac with such a processor has them
#else
    const bool dot_products = false;
#endif
};

#endif

struct Candidate {
    const Kernels* kernels;
    bool supported;
};

#if defined(CORRAL_X86)
constexpr int kCandidates = 4;
#elif defined(CORRAL_ARM64)
constexpr int kCandidates = 2;
#else
constexpr int kCandidates = 1;
#endif

struct Candidates {
    Candidate best_first[kCandidates];
    std::string names;

    Candidates()
#if defined(CORRAL_X86)
        : Candidates(Features()) {
    }
    explicit Candidates(const Features& has)
        : best_first{{&kAvx512Bf16, has.avx512bf16},
                     {&kAvx512Vnni, has.avx512vnni},
                     {&kAvx2, has.avx2},
                     {&kGeneric, true}} {
#elif defined(CORRAL_ARM64)
        : best_first{{&kNeon, Features().dot_products}, {&kGeneric, true}} {
#else
        : best_first{{&kGeneric, true}} {
#endif
        for (const Candidate& each : best_first)
            if (each.supported) names += (names.empty() ? "" : " ") + std::string(each.kernels->name);
    }
};

const Candidates& candidates() {
    static const Candidates found;
    return found;
}

const char* refusal(const char* forced, bool known) {
    thread_local char sentence[256];
    std::snprintf(sentence, sizeof sentence,
                  known ? "CORRAL_ISA is '%.40s', which this machine does not run; choose one of: %s"
                        : "CORRAL_ISA is '%.40s', which is no instruction set that this build knows; choose one of: %s",
                  forced, supported_names());
    return sentence;
}

}  // namespace

const char* supported_names() { return candidates().names.c_str(); }

const Kernels* pick(const char* forced, const char** error) {
    const bool any = forced == nullptr || *forced == '\0';
    bool known = false;
    for (const Candidate& each : candidates().best_first) {
        const bool wanted = any || std::strcmp(forced, each.kernels->name) == 0;
        if (wanted && each.supported) return each.kernels;
        known = known || wanted;
    }
    *error = refusal(forced, known);
    return nullptr;
}

}  // namespace corral
