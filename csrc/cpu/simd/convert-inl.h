// Between fp32 and 16 bits, one register of fp32 at a time; rounding is to nearest, ties to even.
#pragma once

#include "simd/memory-inl.h"

namespace sgl_kernels {
namespace SGL_ISA {

// Lane i: element i, zero-extended.
SGL_INLINE U widen_words(H h) {
#if defined(__AVX512F__)
  return reinterpret_cast<U>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(h)));  // gcc 12: two halves, five moves
#else
  return __builtin_convertvector(h, U);
#endif
}

// Lane i: bf16 number i, exact.
SGL_INLINE F from_bf16(H h) { return as_float(widen_words(h) << 16); }

// Lane i: fp16 number i, exact, subnormals included; a NaN's payload moves up.
SGL_INLINE F from_f16(H h) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(reinterpret_cast<__m256i>(h));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(reinterpret_cast<__m128i>(h));
#elif defined(__aarch64__)
  typedef __fp16 Half4 __attribute__((vector_size(8)));
  return __builtin_convertvector(reinterpret_cast<Half4>(h), F);
#else
  const U u = widen_words(h);
  const U magnitude = (u & 0x7fff) << 13;
  // Multiplying by 2^112 rebases the exponent and makes subnormals exact; infinities and NaN keep their exponent.
  const F scaled = as_float(magnitude) * 0x1p112f;
  const U special = reinterpret_cast<U>((u & 0x7c00) == 0x7c00);
  const U finite = reinterpret_cast<U>(scaled);
  return as_float(((special & (magnitude | 0x7f800000u)) | (~special & finite)) | ((u & 0x8000) << 16));
#endif
}

// The same of one number.
SGL_INLINE float fp16_to_float(uint16_t half) {
#if defined(__aarch64__)
  __fp16 value;
  __builtin_memcpy(&value, &half, sizeof value);
  return value;
#else
  // The exponent moves by 112; subnormals come right by a multiplication, inf and NaN by a second move.
  const uint32_t magnitude = half & 0x7fffu;
  uint32_t bits = magnitude << 13;
  float value;
  if (magnitude >= 0x7c00u) {
    bits += 224u << 23;
    __builtin_memcpy(&value, &bits, sizeof value);
  } else {
    __builtin_memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
  }
  return half & 0x8000u ? -value : value;
#endif
}

// The bf16 in the upper half of each lane, and rubbish below it. NaN stays NaN without a test only where no NaN has all
// upper bits set and a low bit too, which alone could carry into the sign: rows of bf16 have zeros below, arithmetic
// makes 0x7fc00000, and everything else has been made quiet().
SGL_INLINE U round_to_bf16(F v) {
  const U u = (U)v;
#if defined(__AVX512F__)
  const __m512i up = (__m512i)(u + 0x7fffu);
  const __mmask16 odd = _mm512_test_epi32_mask((__m512i)u, _mm512_set1_epi32(0x10000));
  return (U)_mm512_mask_add_epi32(up, odd, up, _mm512_set1_epi32(1));
#else
  return u + 0x7fffu + ((u >> 16) & 1u);
#endif
}

// Element i: lane i as bf16; any NaN stays one. With AVX-512 BF16 what is below 2^-126 becomes a zero of its sign, as
// vdpbf16ps reads such numbers.
SGL_INLINE H to_bf16(F x) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<H>(_mm512_cvtneps_pbh(x));
#else
  const U u = reinterpret_cast<U>(x);
  const U rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  const U nan = (u >> 16) | 0x40;
  return __builtin_convertvector(x == x ? rounded : nan, H);
#endif
}

// Element i: lane i as fp16, subnormals included; from 65520 on infinity; NaN stays NaN.
SGL_INLINE H to_f16(F x) {
#if defined(__AVX512F__)
  return reinterpret_cast<H>(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  return reinterpret_cast<H>(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
  typedef __fp16 Half4 __attribute__((vector_size(8)));
  return reinterpret_cast<H>(__builtin_convertvector(x, Half4));
#else
  const U u = reinterpret_cast<U>(x);
  const U a = u & 0x7fffffff;
  const U sign = (u >> 16) & 0x8000;
  const U normal = (a + 0xfff + ((a >> 13) & 1) - (112u << 23)) >> 13;
  // Below 2^-14 adding 0.5 leaves the subnormal, rounded, in the low bits.
  const U subnormal = reinterpret_cast<U>(as_float(a) + 0.5f) - 0x3f000000u;
  const U nan = U{} + 0x7e00, infinity = U{} + 0x7c00;
  U r = reinterpret_cast<I>(a) < 0x38800000 ? subnormal : normal;
  r = reinterpret_cast<I>(a) >= 0x477ff000 ? infinity : r;
  r = reinterpret_cast<I>(a) > 0x7f800000 ? nan : r;
  return __builtin_convertvector(r | sign, H);
#endif
}

}  // namespace SGL_ISA
}  // namespace sgl_kernels
