// Pairs of bf16 as the 32-bit elements of the tiles, and vdpbf16ps: two products a lane, accumulated in float.
#pragma once

#include "attention_blocked.h"

namespace sgl_kernels::attention {
namespace {

struct DotBf16 : RegisterTiles {
  static constexpr int kUnit = 2;
  static constexpr int kDegree = 3;  // an error of 7.5e-5, beside 2e-3 of rounding weights to bf16

  static SGL_INLINE F dot(F sum, F a, F b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }

  // Lane i: bf16(a[i]) in the low half, bf16(b[i]) in the high half.
  static SGL_INLINE F pair(F a, F b) {
    typedef int16_t S __attribute__((vector_size(64)));
    const S order = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));
    return reinterpret_cast<F>(_mm512_permutexvar_epi16(reinterpret_cast<__m512i>(order), both));
  }

  // The first n channels of a row as pairs; an odd last channel is paired with 0.
  static SGL_INLINE F load_pairs(const char* p, int n) {
    const __mmask32 m = static_cast<__mmask32>((1ull << n) - 1);
    return reinterpret_cast<F>(_mm512_maskz_loadu_epi16(m, p));
  }

  // Channels c .. c+16 of two rows of V as pairs along the keys; second may be null.
  static SGL_INLINE F interleave(const char* first, const char* second, int c, int channels) {
    const int n = channels - c < kLanes ? channels - c : kLanes;
    const __mmask16 m = static_cast<__mmask16>((1u << n) - 1);
    const size_t offset = static_cast<size_t>(c) * 2;
    const U low = widen(reinterpret_cast<H>(_mm256_maskz_loadu_epi16(m, first + offset)));
    const __mmask16 m2 = second == nullptr ? 0 : m;
    const char* from = second == nullptr ? first : second + offset;
    const U high = widen(reinterpret_cast<H>(_mm256_maskz_loadu_epi16(m2, from)));
    return as_float(low | (high << 16));
  }
};

}  // namespace
}  // namespace sgl_kernels::attention
