// Stands before the compiler's own <immintrin.h> in the emulated build: SSE to AVX2 are the real intrinsics, AVX-512
// and AMX are functions over them, so that the sources of csrc/cpu for those levels run on a machine with AVX2 only.
//
// Only what the sources use is here: another intrinsic is an error of the compiler and has to be added, with its check
// in ../check_emulated.cpp. Where the instruction leaves something undefined or faults, this traps or leaves rubbish.
#pragma once

#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__) || !defined(__GNUC__) || defined(__clang__)
#error "the emulation needs gcc with -mavx2 -mfma -mf16c"
#endif
#define _IMMINTRIN_H_INCLUDED  // what gcc's parts ask for, and what keeps the real header out

// clang-format off
#include <mmintrin.h>
#include <xmmintrin.h>
#include <emmintrin.h>
#include <pmmintrin.h>
#include <tmmintrin.h>
#include <smmintrin.h>
#include <avxintrin.h>
#include <avx2intrin.h>
#include <fmaintrin.h>
#include <f16cintrin.h>

#include "avx512_basic.h"
#include "avx512_float.h"
#include "avx512_integer.h"
#include "avx512_order.h"
#include "avx512_dot.h"
#include "amx.h"
// clang-format on
