// Moves of lanes: unpack, pack, shuffle, permute.
#pragma once

#include "avx512_basic.h"

// These work inside each 128 bits, like the real AVX2 instructions that they are made of.
#define SGL_EMULATED_PAIR(name)                                                                         \
  SGL_EMULATED __m512i _mm512_##name(__m512i a, __m512i b) {                                            \
    return emulated::by_parts<__m256i>(a, b, [](__m256i x, __m256i y) { return _mm256_##name(x, y); }); \
  }
SGL_EMULATED_PAIR(unpacklo_epi16)
SGL_EMULATED_PAIR(unpackhi_epi16)
SGL_EMULATED_PAIR(unpacklo_epi32)
SGL_EMULATED_PAIR(unpackhi_epi32)
SGL_EMULATED_PAIR(unpacklo_epi64)
SGL_EMULATED_PAIR(unpackhi_epi64)
SGL_EMULATED_PAIR(packs_epi16)
SGL_EMULATED_PAIR(packs_epi32)
SGL_EMULATED_PAIR(packus_epi16)
SGL_EMULATED_PAIR(shuffle_epi8)
#undef SGL_EMULATED_PAIR
SGL_EMULATED __m512 _mm512_unpacklo_ps(__m512 a, __m512 b) {
  return emulated::by_parts<__m256>(a, b, [](__m256 x, __m256 y) { return _mm256_unpacklo_ps(x, y); });
}
SGL_EMULATED __m512 _mm512_unpackhi_ps(__m512 a, __m512 b) {
  return emulated::by_parts<__m256>(a, b, [](__m256 x, __m256 y) { return _mm256_unpackhi_ps(x, y); });
}
SGL_EMULATED __m512d _mm512_unpacklo_pd(__m512d a, __m512d b) {
  return emulated::by_parts<__m256d>(a, b, [](__m256d x, __m256d y) { return _mm256_unpacklo_pd(x, y); });
}
SGL_EMULATED __m512d _mm512_unpackhi_pd(__m512d a, __m512d b) {
  return emulated::by_parts<__m256d>(a, b, [](__m256d x, __m256d y) { return _mm256_unpackhi_pd(x, y); });
}

// Two quarters of a, then two of b.
SGL_EMULATED __m512i _mm512_shuffle_i32x4(__m512i a, __m512i b, int imm) {
  __m128i x[4], y[4];
  __builtin_memcpy(x, &a, sizeof a);
  __builtin_memcpy(y, &b, sizeof b);
  const __m128i r[4] = {x[imm & 3], x[imm >> 2 & 3], y[imm >> 4 & 3], y[imm >> 6 & 3]};
  return emulated::load<__m512i>(r);
}
SGL_EMULATED __m512i _mm512_shuffle_i64x2(__m512i a, __m512i b, int imm) { return _mm512_shuffle_i32x4(a, b, imm); }
SGL_EMULATED __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int imm) {
  return reinterpret_cast<__m512>(
      _mm512_shuffle_i32x4(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b), imm));
}
SGL_EMULATED __m512i _mm512_broadcast_i32x4(__m128i a) {
  const __m128i r[4] = {a, a, a, a};
  return emulated::load<__m512i>(r);
}

namespace emulated {

template <class T, class V>
SGL_EMULATED V permuted(__m512i order, V a) {
  const auto x = lanes_of<T>(a), at = lanes_of<T>(reinterpret_cast<V>(order));
  return by_lanes<T, V>([&](unsigned i) { return x.at[at.at[i] & (x.count - 1)]; });
}

}  // namespace emulated

SGL_EMULATED __m512i _mm512_permutexvar_epi8(__m512i order, __m512i a) { return emulated::permuted<uint8_t>(order, a); }
SGL_EMULATED __m512i _mm512_permutexvar_epi16(__m512i order, __m512i a) {
  return emulated::permuted<uint16_t>(order, a);
}
SGL_EMULATED __m512i _mm512_permutex2var_epi16(__m512i a, __m512i order, __m512i b) {  // lanes of a, then of b
  const auto x = emulated::lanes_of<uint16_t>(a), y = emulated::lanes_of<uint16_t>(b);
  const auto at = emulated::lanes_of<uint16_t>(order);
  return emulated::by_lanes<uint16_t, __m512i>(
      [&](unsigned i) { return (at.at[i] & 32) != 0 ? y.at[at.at[i] & 31] : x.at[at.at[i] & 31]; });
}
SGL_EMULATED __m512i _mm512_permutexvar_epi32(__m512i order, __m512i a) {
  return emulated::permuted<uint32_t>(order, a);
}
SGL_EMULATED __m512 _mm512_permutexvar_ps(__m512i order, __m512 a) { return emulated::permuted<uint32_t>(order, a); }
SGL_EMULATED __m512i _mm512_maskz_permutexvar_epi16(__mmask32 k, __m512i order, __m512i a) {
  return emulated::choose<uint16_t>(k, _mm512_permutexvar_epi16(order, a), __m512i{});
}
