// Vector pieces shared by the NVFP4 sources: loads, stores, number formats. Only *_avx512vbmi.cpp may include it.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12, on its own _mm512_undefined_*
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

#include "nvfp4/args.h"

namespace sgl_kernels::nvfp4::avx512vbmi {

// nvfp4/quantize_avx512vbmi.cpp, for the table in nvfp4/kernels_avx512vbmi.cpp; what they do: nvfp4/args.h
void quantize_rows(const Rows& x, float global_scale, int64_t begin, int64_t end, uint8_t* codes, uint8_t* scales);
float finite_amax(const void* x, Element type, int64_t n);
void decode_panel(const uint8_t* panel, int64_t k, Element type, void* out, int64_t stride, int64_t columns);

#define SGLK_INLINE inline __attribute__((always_inline))

// Sixteen elements as fp32; `mask` says which exist (the others are 0).
SGLK_INLINE __m512 load16(const void* base, Element type, int64_t at, __mmask16 mask = 0xFFFF) {
  if (type == Element::f32) {
    return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(base) + at);
  }
  const __m256i raw = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(base) + at);
  return type == Element::f16 ? _mm512_cvtph_ps(raw)
                              : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

// fp32 to bf16, nearest even, NaN kept.
SGLK_INLINE __m256i to_bf16(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7FC00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

SGLK_INLINE void store16(void* base, Element type, int64_t at, __m512 v, __mmask16 mask = 0xFFFF) {
  if (type == Element::f32) {
    _mm512_mask_storeu_ps(static_cast<float*>(base) + at, mask, v);
    return;
  }
  const __m256i half =
      type == Element::f16 ? _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC) : to_bf16(v);
  _mm256_mask_storeu_epi16(static_cast<uint16_t*>(base) + at, mask, half);
}

// Sixteen finite e4m3 codes >= 0 as fp32 x 2^-8: an e4m3 code shifted into fp16's fields is that fp16 number,
// subnormals included.
SGLK_INLINE __m512 scales16(const uint8_t* codes) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
  return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(raw), 7));
}

// Byte table of 16 entries repeated: vpermb looks at six bits of the index, so two junk bits above a nibble do not
// matter and no mask is needed.
SGLK_INLINE __m512i nibble_table(const int8_t (&values)[16]) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
}

// Twice each e2m1 value, plus 12: unsigned, as the first operand of vpdpbusd must be.
alignas(16) constexpr int8_t kUnsigned[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
// Twice each e2m1 value.
alignas(16) constexpr int8_t kSigned[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
constexpr int32_t kOffset = 12;

SGLK_INLINE __m512i low_nibbles(__m512i packed, __m512i table) { return _mm512_permutexvar_epi8(packed, table); }
SGLK_INLINE __m512i high_nibbles(__m512i packed, __m512i table) {
  return _mm512_permutexvar_epi8(_mm512_srli_epi16(packed, 4), table);
}

SGLK_INLINE __m512i broadcast4(const void* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}

SGLK_INLINE __m512i magnitude(__m512 v) {
  return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7FFFFFFF));
}
constexpr int32_t kInfinity = 0x7F800000;  // as bits; NaN is above it

// Sixteen vectors of magnitudes (fp32 bits: ordered as integers, NaN on top), one per block -> their 16 maxima.
SGLK_INLINE __m512i block_maxima(const __m512i (&v)[16]) {
  __m512i a[8], b[4], c[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {  // lanes 0,1 against 2,3
    a[i] = _mm512_max_epi32(_mm512_shuffle_i32x4(v[i], v[i + 8], 0x44), _mm512_shuffle_i32x4(v[i], v[i + 8], 0xEE));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // then one lane each for blocks i, i + 8, i + 4, i + 12
    b[i] = _mm512_max_epi32(_mm512_shuffle_i32x4(a[i], a[i + 4], 0x88), _mm512_shuffle_i32x4(a[i], a[i + 4], 0xDD));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    c[i] = _mm512_max_epi32(_mm512_unpacklo_epi32(b[i], b[i + 2]), _mm512_unpackhi_epi32(b[i], b[i + 2]));
  }
  const __m512i d = _mm512_max_epi32(_mm512_unpacklo_epi32(c[0], c[1]), _mm512_unpackhi_epi32(c[0], c[1]));
  return _mm512_shuffle_i32x4(d, d, 0xD8);  // lanes hold blocks 0-3, 8-11, 4-7, 12-15
}

}  // namespace sgl_kernels::nvfp4::avx512vbmi
