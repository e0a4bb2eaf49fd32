// The C interface: turns handles into objects, and exceptions into null.
#include <new>

#include "corral_native.h"
#include "cpu.h"
#include "pool.h"

using corral::Kernels;
using corral::Pool;

namespace {

const Kernels* kernels_of(const corral_kernels* handle) { return reinterpret_cast<const Kernels*>(handle); }
Pool* pool_of(corral_pool* handle) { return reinterpret_cast<Pool*>(handle); }

}  // namespace

int32_t corral_abi_version(void) { return CORRAL_ABI_VERSION; }

const char* corral_isas(void) { return corral::supported_names(); }

const corral_kernels* corral_pick(const char* isa, const char** error) {
    return reinterpret_cast<const corral_kernels*>(corral::pick(isa, error));
}

const char* corral_kernels_name(const corral_kernels* kernels) { return kernels_of(kernels)->name; }

int32_t corral_kernels_read_pairs(const corral_kernels* kernels) { return kernels_of(kernels)->reads_pairs; }

int32_t corral_cores(void) { return corral::usable_cores(); }

corral_pool* corral_pool_open(int32_t threads) {
    Pool* pool = nullptr;
    try {
        pool = new Pool(threads);
    } catch (...) {
        return nullptr;
    }
    if (pool->ready()) return reinterpret_cast<corral_pool*>(pool);
    delete pool;
    return nullptr;
}

int32_t corral_pool_threads(const corral_pool* pool) { return reinterpret_cast<const Pool*>(pool)->threads(); }

void corral_pool_close(corral_pool* pool) { pool_of(pool)->close(); }

void corral_pool_free(corral_pool* pool) { delete pool_of(pool); }
