// The C interface of programs.
#include <new>

#include "corral_native.h"
#include "program.h"

using corral::Batch;
using corral::Kernels;
using corral::Pool;
using corral::Program;
using corral::ProgramSpec;

corral_program* corral_program_create(const void* spec, const corral_kernels* kernels) {
    try {
        return reinterpret_cast<corral_program*>(
            new Program(*static_cast<const ProgramSpec*>(spec), *reinterpret_cast<const Kernels*>(kernels)));
    } catch (...) {
        return nullptr;
    }
}

int32_t corral_program_run(corral_program* program, corral_pool* pool, const void* batch, float* out) {
    try {
        const bool done = reinterpret_cast<Program*>(program)->run(*reinterpret_cast<Pool*>(pool),
                                                                   *static_cast<const Batch*>(batch), out);
        return done ? CORRAL_DONE : CORRAL_CLOSED;
    } catch (...) {
        return CORRAL_OUT_OF_MEMORY;
    }
}

void corral_program_free(corral_program* program) { delete reinterpret_cast<Program*>(program); }
