// The table of an instruction set: what isa_*.cpp make, each with its own CORRAL_NAMESPACE.
//
// No #pragma once and no templates of the standard library here or in what is included: a function that two isa_*.cpp share
// by name would be merged by the linker, and one instruction set would run the other's code.
#include "../kernels.h"
#include "../train/table.h"
#include "attention.h"
#include "elementwise.h"
#include "matmul.h"
#include "quantize.h"
#include "scan.h"

namespace corral {
namespace CORRAL_NAMESPACE {

constexpr Kernels table(const char* name) {
    return {
        name,
        matmul,
        matmul_scratch,
        quantize,
        rms_norm,
        swiglu,
        rotate,
        store,
        attention_parts,
        attention_scratch,
        attention_join,
        argmax,
        column_maxima,
        find_from,
        exp_sum,
        kReadsPairs,
        &kTrain,
    };
}

}  // namespace CORRAL_NAMESPACE
}  // namespace corral
