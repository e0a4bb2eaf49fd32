// Every instruction set that this machine runs, against the generic kernels.
#include <sstream>
#include <string>

#include "cpu.h"
#include "isa_compare.h"

namespace corral {

extern const Kernels kFused;

}  // namespace corral

int main() {
    using namespace corral;
    const char* error = nullptr;
    std::istringstream names(supported_names());
#if defined(CORRAL_X86)
    const bool fused = std::strcmp(pick(nullptr, &error)->name, "generic") != 0;  // all others want FMA
    const Kernels& reference = fused ? kFused : kGeneric;
#else
    const Kernels& reference = kGeneric;
#endif
    for (std::string name; names >> name;) {
        const Kernels* kernels = pick(name.c_str(), &error);
        CHECK(kernels != nullptr && kernels->name == name);
#if defined(CORRAL_X86)
        const bool fuses = !fused || kernels != &kGeneric;
#else
        const bool fuses = true;
#endif
        const Pair pair{reference, *kernels, fuses, fuses && !kernels->reads_pairs};
        compare_rows(pair);
        compare_matmul(pair);
        compare_attention(pair);
        std::printf("%s: as %s\n", kernels->name, reference.name);
    }
}
