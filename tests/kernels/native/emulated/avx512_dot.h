// Dot products: VNNI's bytes, and bf16 with its own rounding rules.
#pragma once

#include "avx512_basic.h"

namespace emulated {

// vpdpbusd: sum + 4 products of unsigned bytes u and signed bytes s; the sum wraps.
SGL_EMULATED __m256i dot_bytes(__m256i sum, __m256i u, __m256i s) {
  const __m256i low = _mm256_set1_epi16(255);
  const __m256i even_s = _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8), odd_s = _mm256_srai_epi16(s, 8);
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, low), even_s);
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), odd_s);
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}

// The bf16 instructions take subnormal numbers for zeros, before and after each operation.
SGL_EMULATED __m256 without_subnormals(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i exponent = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f800000));
  const __m256i tiny = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
  const __m256i kept = _mm256_or_si256(_mm256_andnot_si256(tiny, _mm256_set1_epi32(-1)),
                                       _mm256_set1_epi32(static_cast<int>(0x80000000u)));
  return _mm256_castsi256_ps(_mm256_and_si256(bits, kept));
}
SGL_EMULATED __m256 even_bf16(__m256i x) { return without_subnormals(_mm256_castsi256_ps(_mm256_slli_epi32(x, 16))); }
SGL_EMULATED __m256 odd_bf16(__m256i x) {
  return without_subnormals(_mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(-65536))));
}
SGL_EMULATED __m256 add_product(__m256 sum, __m256 a, __m256 b) {
  return without_subnormals(_mm256_fmadd_ps(a, b, without_subnormals(sum)));
}

// vdpbf16ps: the odd products are added first.
SGL_EMULATED __m256 dot_bf16(__m256 sum, __m256i a, __m256i b) {
  return add_product(add_product(sum, odd_bf16(a), odd_bf16(b)), even_bf16(a), even_bf16(b));
}

SGL_EMULATED uint16_t to_bf16(uint32_t bits) {
  const uint32_t exponent = bits & 0x7f800000u;
  if (exponent == 0) return static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (exponent == 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | ((bits & 0x7fffffu) != 0 ? 0x40u : 0u));
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace emulated

SGL_EMULATED __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i u, __m512i s) {
  __m256i x[2], y[2], z[2];
  __builtin_memcpy(x, &sum, sizeof sum);
  __builtin_memcpy(y, &u, sizeof u);
  __builtin_memcpy(z, &s, sizeof s);
  x[0] = emulated::dot_bytes(x[0], y[0], z[0]);
  x[1] = emulated::dot_bytes(x[1], y[1], z[1]);
  return emulated::load<__m512i>(x);
}
SGL_EMULATED __m128i _mm_dpbusd_epi32(__m128i sum, __m128i u, __m128i s) {
  const __m256i zero = _mm256_setzero_si256();
  return _mm256_castsi256_si128(emulated::dot_bytes(
      _mm256_inserti128_si256(zero, sum, 0), _mm256_inserti128_si256(zero, u, 0), _mm256_inserti128_si256(zero, s, 0)));
}

SGL_EMULATED __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  __m256 x[2];
  __m256i y[2], z[2];
  __builtin_memcpy(x, &sum, sizeof sum);
  __builtin_memcpy(y, &a, sizeof a);
  __builtin_memcpy(z, &b, sizeof b);
  x[0] = emulated::dot_bf16(x[0], y[0], z[0]);
  x[1] = emulated::dot_bf16(x[1], y[1], z[1]);
  return emulated::load<__m512>(x);
}

// b in the low half, a in the high half.
SGL_EMULATED __m512bh _mm512_cvtne2ps_pbh(__m512 a, __m512 b) {
  const auto high = emulated::lanes_of<uint32_t>(a), low = emulated::lanes_of<uint32_t>(b);
  return emulated::by_lanes<uint16_t, __m512bh>(
      [&](unsigned i) { return emulated::to_bf16(i < 16 ? low.at[i] : high.at[i - 16]); });
}
SGL_EMULATED __m256bh _mm512_cvtneps_pbh(__m512 a) {
  const auto x = emulated::lanes_of<uint32_t>(a);
  return emulated::by_lanes<uint16_t, __m256bh>([&](unsigned i) { return emulated::to_bf16(x.at[i]); });
}
