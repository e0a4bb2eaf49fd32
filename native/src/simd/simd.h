// Sixteen lanes of a vector, by what the compiler may use in this translation unit.
#pragma once

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "avx2.h"
#elif defined(__ARM_FEATURE_DOTPROD) && !defined(CORRAL_PLAIN_VECTORS)
#define CORRAL_NEON
#include "neon.h"
#else
#include "generic.h"
#endif
