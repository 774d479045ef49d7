// Arithmetic, comparisons and conversions of integers.
#pragma once

#include "avx512_basic.h"
#include "avx512_float.h"

#define SGL_EMULATED_PAIR(name)                                                                         \
  SGL_EMULATED __m512i _mm512_##name(__m512i a, __m512i b) {                                            \
    return emulated::by_parts<__m256i>(a, b, [](__m256i x, __m256i y) { return _mm256_##name(x, y); }); \
  }
SGL_EMULATED_PAIR(add_epi32)
SGL_EMULATED_PAIR(sub_epi32)
SGL_EMULATED_PAIR(max_epi32)
SGL_EMULATED_PAIR(min_epi32)
SGL_EMULATED_PAIR(max_epu16)
#undef SGL_EMULATED_PAIR

SGL_EMULATED __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
SGL_EMULATED __m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }
SGL_EMULATED __m512i _mm512_xor_si512(__m512i a, __m512i b) { return a ^ b; }

// `real` takes its count from a register: these counts need not be constants.
#define SGL_EMULATED_SHIFT(name, real)                                                      \
  SGL_EMULATED __m512i _mm512_##name(__m512i a, unsigned count) {                           \
    const __m128i by = _mm_cvtsi32_si128(static_cast<int>(count));                          \
    return emulated::by_parts<__m256i>(a, [=](__m256i x) { return _mm256_##real(x, by); }); \
  }
SGL_EMULATED_SHIFT(slli_epi32, sll_epi32)
SGL_EMULATED_SHIFT(srli_epi32, srl_epi32)
SGL_EMULATED_SHIFT(srai_epi32, sra_epi32)
SGL_EMULATED_SHIFT(srli_epi16, srl_epi16)
SGL_EMULATED_SHIFT(slli_epi16, sll_epi16)
SGL_EMULATED_SHIFT(srli_epi64, srl_epi64)
#undef SGL_EMULATED_SHIFT

SGL_EMULATED __m512i _mm512_abs_epi8(__m512i a) {
  return emulated::by_parts<__m256i>(a, [](__m256i x) { return _mm256_abs_epi8(x); });
}

// Bit i of the result is bit (a b c) of the table.
SGL_EMULATED __m512i _mm512_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table) {
  __m512i r{};
  for (int row = 0; row < 8; ++row) {
    if ((table >> row & 1) == 0) continue;
    r |= ((row & 4) != 0 ? a : ~a) & ((row & 2) != 0 ? b : ~b) & ((row & 1) != 0 ? c : ~c);
  }
  return r;
}

SGL_EMULATED __m512i _mm512_mask_mov_epi32(__m512i other, __mmask16 k, __m512i a) {
  return emulated::choose<uint32_t>(k, a, other);
}
SGL_EMULATED __m512i _mm512_mask_add_epi32(__m512i other, __mmask16 k, __m512i a, __m512i b) {
  return emulated::choose<uint32_t>(k, _mm512_add_epi32(a, b), other);
}
SGL_EMULATED __m512i _mm512_mask_max_epi32(__m512i other, __mmask16 k, __m512i a, __m512i b) {
  return emulated::choose<uint32_t>(k, _mm512_max_epi32(a, b), other);
}
SGL_EMULATED __m512i _mm512_mask_max_epu16(__m512i other, __mmask32 k, __m512i a, __m512i b) {
  return emulated::choose<uint16_t>(k, _mm512_max_epu16(a, b), other);
}

SGL_EMULATED int _mm512_reduce_max_epi32(__m512i a) {
  const auto x = emulated::lanes_of<int32_t>(a);
  int most = x.at[0];
  for (int i = 1; i < 16; ++i) most = most > x.at[i] ? most : x.at[i];
  return most;
}

// ---- masks ------------------------------------------------------------------------------------------------------

SGL_EMULATED __mmask16 _mm512_test_epi32_mask(__m512i a, __m512i b) {
  const auto x = emulated::lanes_of<uint32_t>(a & b);
  return emulated::mask_of([&](unsigned i) { return x.at[i] != 0; });
}
SGL_EMULATED __mmask16 _mm_test_epi8_mask(__m128i a, __m128i b) {
  const auto x = emulated::lanes_of<uint8_t>(a & b);
  return emulated::mask_of([&](unsigned i) { return x.at[i] != 0; });
}
SGL_EMULATED __mmask16 _mm512_cmplt_epi32_mask(__m512i a, __m512i b) {
  const auto x = emulated::lanes_of<int32_t>(a), y = emulated::lanes_of<int32_t>(b);
  return emulated::mask_of([&](unsigned i) { return x.at[i] < y.at[i]; });
}
SGL_EMULATED __mmask16 _mm512_cmpge_epi32_mask(__m512i a, __m512i b) {
  const auto x = emulated::lanes_of<int32_t>(a), y = emulated::lanes_of<int32_t>(b);
  return emulated::mask_of([&](unsigned i) { return x.at[i] >= y.at[i]; });
}
SGL_EMULATED __mmask32 _mm512_cmplt_epu16_mask(__m512i a, __m512i b) {
  const auto x = emulated::lanes_of<uint16_t>(a), y = emulated::lanes_of<uint16_t>(b);
  __mmask32 mask = 0;
  for (unsigned i = 0; i < 32; ++i) mask |= static_cast<__mmask32>(x.at[i] < y.at[i] ? 1 : 0) << i;
  return mask;
}

// ---- conversions ------------------------------------------------------------------------------------------------

SGL_EMULATED __m128i _mm512_cvtepi32_epi8(__m512i a) {  // the low byte of each lane
  const auto x = emulated::lanes_of<uint32_t>(a);
  return emulated::by_lanes<uint8_t, __m128i>([&](unsigned i) { return x.at[i]; });
}
SGL_EMULATED __m256i _mm512_cvtepi32_epi16(__m512i a) {
  const auto x = emulated::lanes_of<uint32_t>(a);
  return emulated::by_lanes<uint16_t, __m256i>([&](unsigned i) { return x.at[i]; });
}
SGL_EMULATED __m512i _mm512_cvtepu16_epi32(__m256i a) {
  const auto x = emulated::lanes_of<uint16_t>(a);
  return emulated::by_lanes<uint32_t, __m512i>([&](unsigned i) { return x.at[i]; });
}
