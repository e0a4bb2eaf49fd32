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

int32_t corral_run_steps(const corral_step* steps, int32_t count, corral_pool* pool) {
    try {
        for (const corral_step* step = steps; step < steps + count; ++step) {
            Program& program = *reinterpret_cast<Program*>(step->program);
            const corral::Result result{step->out, step->best, step->best_ids};
            if (!program.run(*reinterpret_cast<Pool*>(pool), *static_cast<const Batch*>(step->batch), result)) return CORRAL_CLOSED;
        }
        return CORRAL_DONE;
    } catch (...) {
        return CORRAL_OUT_OF_MEMORY;
    }
}

void corral_program_free(corral_program* program) { delete reinterpret_cast<Program*>(program); }
