// Which instruction set runs here, and how many threads pay.
#pragma once
#include "kernels.h"

namespace corral {

// One table from each isa_*.cpp that this build has. They are constants: nothing of an isa_*.cpp runs before it is picked.
extern const Kernels kGeneric;
#if defined(CORRAL_X86)
extern const Kernels kAvx2;
extern const Kernels kAvx512Vnni;
extern const Kernels kAvx512Bf16;
#endif
#if defined(CORRAL_ARM64)
extern const Kernels kNeon;
#endif

// The kernels called `forced`, or the best that run here if that is null or empty. Null, and a sentence in `error`, if
// nothing is called so or this machine does not run it; the sentence is valid until the thread's next call.
const Kernels* pick(const char* forced, const char** error);

// The names that `pick` takes here, best first, with blanks between.
const char* supported_names();

// Physical cores that this process may run on, by its affinity, and no more than its CPU quota; at least 1. Two hardware
// threads of a core share what the kernels are short of, so the second is not counted.
int usable_cores();

}  // namespace corral
