// Pairs of bf16 as the 32-bit elements of the tiles, and vdpbf16ps: two products a lane, accumulated in float.
#pragma once

#include "attention/blocked-inl.h"

namespace sgl_kernels::attention {
namespace {

struct DotBf16 : RegisterTiles {
  static constexpr int kUnit = 2;
  static constexpr int kDegree = 3;  // an error of 7.5e-5, beside 2e-3 of rounding weights to bf16

  static SGL_MEMBER F dot(F sum, F a, F b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }

  static SGL_MEMBER F pair(F a, F b) { return as_float(narrow<Bf16>({a, b}).bits); }

  // The first n channels of a row as pairs; an odd last channel is paired with 0.
  static SGL_MEMBER F load_pairs(const char* p, int n) {
    return as_float(read_raw(reinterpret_cast<const Bf16*>(p), int64_t{n}).bits);
  }

  // Channels c .. c+32 of two rows of V as pairs along the keys.
  static SGL_MEMBER void interleave_two(const char* first, const char* second, int c, float* to) {
    const W low = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                   8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i a = load<__m512i>(first + static_cast<size_t>(c) * 2);
    const __m512i b = load<__m512i>(second + static_cast<size_t>(c) * 2);
    store(to, _mm512_permutex2var_epi16(a, reinterpret_cast<__m512i>(low), b));
    store(to + kLanes, _mm512_permutex2var_epi16(a, reinterpret_cast<__m512i>(low + 16), b));
  }

  // Channels c .. c+16 of two rows of V as pairs along the keys; second may be null.
  static SGL_MEMBER F interleave(const char* first, const char* second, int c, int channels) {
    const int n = channels - c < kLanes ? channels - c : kLanes;
    const size_t offset = static_cast<size_t>(c) * 2;
    const U low = widen_words(load_some<H>(first + offset, n));
    const char* from = second == nullptr ? first : second + offset;
    const U high = widen_words(load_some<H>(from, second == nullptr ? 0 : n));
    return as_float(low | (high << 16));
  }
};

}  // namespace
}  // namespace sgl_kernels::attention
