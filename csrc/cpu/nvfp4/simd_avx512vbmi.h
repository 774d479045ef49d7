// What the NVFP4 sources for AVX-512 VBMI say in the words of simd/: elements of any type, scales, nibbles, maxima.
// Only
// *_avx512vbmi.cpp may include it.
#pragma once

#include "nvfp4/args.h"
#include "simd/bytes-inl.h"
#include "simd/convert-inl.h"

namespace sgl_kernels::nvfp4::avx512vbmi {

// nvfp4/quantize_avx512vbmi.cpp, for the table in nvfp4/kernels_avx512vbmi.cpp; what they do: nvfp4/args.h
void quantize_rows(const Rows& x, float global_scale, int64_t begin, int64_t end, uint8_t* codes, uint8_t* scales);
float finite_amax(const void* x, Element type, int64_t n);
void decode_panel(const uint8_t* panel, int64_t k, Element type, void* out, int64_t stride, int64_t columns);

namespace {

using namespace ::sgl_kernels::SGL_ISA;

// Sixteen elements as fp32; `mask` says which exist (the others are 0).
SGL_INLINE __m512 load16(const void* base, Element type, int64_t at, __mmask16 mask = 0xFFFF) {
  if (type == Element::f32) {
    return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(base) + at);
  }
  const H raw = (H)_mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(base) + at);
  return type == Element::f16 ? from_f16(raw) : from_bf16(raw);
}

// Rounded once; every NaN becomes a quiet one.
SGL_INLINE void store16(void* base, Element type, int64_t at, __m512 v, __mmask16 mask = 0xFFFF) {
  if (type == Element::f32) {
    _mm512_mask_storeu_ps(static_cast<float*>(base) + at, mask, v);
    return;
  }
  const __m256i half =
      type == Element::f16 ? (__m256i)to_f16(v) : _mm512_cvtepi32_epi16((__m512i)(round_to_bf16(quiet(v)) >> 16));
  _mm256_mask_storeu_epi16(static_cast<uint16_t*>(base) + at, mask, half);
}

// Sixteen finite e4m3 codes >= 0 as fp32 x 2^-8: an e4m3 code shifted into fp16's fields is that fp16 number,
// subnormals included.
SGL_INLINE __m512 scales16(const uint8_t* codes) {
  return from_f16((H)_mm256_slli_epi16(_mm256_cvtepu8_epi16(load<__m128i>(codes)), 7));
}

// Byte table of 16 entries repeated: vpermb looks at six bits of the index, so two junk bits above a nibble do not
// matter and no mask is needed.
SGL_INLINE __m512i nibble_table(const int8_t (&values)[16]) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
}

// Twice each e2m1 value, plus 12: unsigned, as the first operand of vpdpbusd must be.
alignas(16) constexpr int8_t kUnsigned[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
// Twice each e2m1 value.
alignas(16) constexpr int8_t kSigned[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
constexpr int32_t kOffset = 12;

SGL_INLINE __m512i low_nibbles(__m512i packed, __m512i table) { return _mm512_permutexvar_epi8(packed, table); }
SGL_INLINE __m512i high_nibbles(__m512i packed, __m512i table) {
  return _mm512_permutexvar_epi8(_mm512_srli_epi16(packed, 4), table);
}

SGL_INLINE __m512i broadcast4(const void* p) { return (__m512i)splat_word(p); }
SGL_INLINE __m512i magnitude_bits(__m512 v) { return (__m512i)magnitude(v); }

// Sixteen vectors of magnitudes (fp32 bits: ordered as integers, NaN on top), one per block -> their 16 maxima.
SGL_INLINE __m512i block_maxima(const __m512i (&v)[16]) {
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

}  // namespace
}  // namespace sgl_kernels::nvfp4::avx512vbmi
