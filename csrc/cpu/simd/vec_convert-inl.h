// Conversion between storage types and vectors of fp32, and the loads that use it. With simd/vec-inl.h, the only file
// that knows the instruction set.
#pragma once

#include "simd/vec-inl.h"

namespace sgl_kernels {
namespace SGL_ISA {

// To bf16 with ties to even, the result in the upper halves. NaN stays NaN without a test because no NaN here has all
// upper bits set and a low bit too, which alone could carry into the sign: rows of bf16 have zeros below, arithmetic
// makes 0x7fc00000, and prepared parameters are cleaned (rowwise/common-inl.h).
SGL_INLINE U round_to_bf16(F v) {
  const U bits = (U)v;
#if defined(__AVX512F__)
  const __m512i up = (__m512i)(bits + 0x7fffu);
  const __mmask16 odd = _mm512_test_epi32_mask((__m512i)bits, _mm512_set1_epi32(0x10000));
  return (U)_mm512_mask_add_epi32(up, odd, up, _mm512_set1_epi32(1));
#else
  return bits + 0x7fffu + ((bits >> 16) & 1u);
#endif
}

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

SGL_INLINE uint16_t float_to_fp16(float value) {
#if defined(__aarch64__)
  const __fp16 half = static_cast<__fp16>(value);
  uint16_t bits;
  __builtin_memcpy(&bits, &half, sizeof bits);
  return bits;
#else
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) {
    return static_cast<uint16_t>(sign | 0x7e00u);
  }
  if (bits >= 0x477ff000u) {  // 65520 and above round to infinity
    return static_cast<uint16_t>(sign | 0x7c00u);
  }
  if (bits < 0x38800000u) {  // below 2^-14: adding 0.5 aligns the subnormal and rounds it to even
    float shifted;
    __builtin_memcpy(&shifted, &bits, sizeof shifted);
    shifted += 0.5f;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  bits += 0xc8000fffu + ((bits >> 13) & 1u);
  return static_cast<uint16_t>(sign | (bits >> 13));
#endif
}

#if !defined(__F16C__)
// Out of line: inlined into every loop they would make half of the library.
static __attribute__((noinline)) void fp16_to_floats(const uint16_t* half, float* value) {
  for (int i = 0; i < kBlock; ++i) {
    value[i] = fp16_to_float(half[i]);
  }
}

static __attribute__((noinline)) void floats_to_fp16(const float* value, uint16_t* half) {
  for (int i = 0; i < kBlock; ++i) {
    half[i] = float_to_fp16(value[i]);
  }
}
#endif

SGL_INLINE Pair widen(Raw<float> raw) { return {raw.a, raw.b}; }
SGL_INLINE Pair widen(Raw<Bf16> raw) { return {(F)(raw.bits << 16), (F)(raw.bits & 0xffff0000u)}; }
SGL_INLINE Pair widen(Raw<Fp16> raw) {
#if defined(__AVX512F__)
  const __m512i bits = (__m512i)raw.bits;
  return {_mm512_cvtph_ps(_mm512_castsi512_si256(bits)), _mm512_cvtph_ps(_mm512_extracti64x4_epi64(bits, 1))};
#elif defined(__F16C__)
  const __m256i bits = (__m256i)raw.bits;
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(bits)), _mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1))};
#else
  uint16_t half[kBlock];
  float value[kBlock];
  __builtin_memcpy(half, &raw, sizeof half);
  fp16_to_floats(half, value);
  Pair v;
  __builtin_memcpy(&v, value, sizeof v);
  return v;
#endif
}

template <class T>
SGL_INLINE Raw<T> narrow(Pair v) {
  if constexpr (sizeof(T) == 4) {
    return {v.a, v.b};
  } else if constexpr (kEvenOdd<T>) {
#if defined(__AVX512BF16__)
    // Two operations in place of eight (rms_norm in cache 1.27 times as fast on Zen 5). NaN and infinity are kept;
    // results below 2^-126, smaller than any normal bf16, become zeros, as in this level's attention.
    const __m512i apart = (__m512i)_mm512_cvtne2ps_pbh(v.b, v.a);
    typedef int16_t Halves __attribute__((vector_size(64)));
    const Halves order = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                          8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return {(U)_mm512_permutexvar_epi16((__m512i)order, apart)};
#elif defined(__AVX2__) && !defined(__AVX512F__)
    // Both halves of a lane at once, 9 operations in place of 11: what is cut off, where it and the last kept bit ask
    // for one more (ties to even), and the carry.
    const __m256i a = (__m256i)v.a, b = (__m256i)v.b;
    const __m256i kept = _mm256_blend_epi16(_mm256_srli_epi32(a, 16), b, 0xaa);
    const __m256i cut = _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xaa);
    const __m256i above_half = _mm256_xor_si256(cut, _mm256_set1_epi16(-0x8000));
    const __m256i odd = _mm256_and_si256(kept, _mm256_set1_epi16(1));
    const __m256i up = _mm256_cmpgt_epi16(_mm256_adds_epi16(above_half, odd), _mm256_setzero_si256());
    return {(U)_mm256_sub_epi16(kept, up)};
#else
    return {(round_to_bf16(v.a) >> 16) | (round_to_bf16(v.b) & 0xffff0000u)};
#endif
  } else {
#if defined(__AVX512F__)
    const __m256i low = _mm512_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT);
    return {(U)_mm512_inserti64x4(_mm512_castsi256_si512(low), _mm512_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT), 1)};
#elif defined(__F16C__)
    const __m128i low = _mm256_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT);
    return {
        (U)_mm256_inserti128_si256(_mm256_castsi128_si256(low), _mm256_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT), 1)};
#else
    float value[kBlock];
    uint16_t half[kBlock];
    __builtin_memcpy(value, &v, sizeof v);
    floats_to_fp16(value, half);
    Raw<T> raw;
    __builtin_memcpy(&raw, half, sizeof half);
    return raw;
#endif
  }
}

// Sums of a block of bf16 without widening it, products being exact; elements and squares below 2^-126 count as zero.
template <class T>
constexpr bool kHasProducts = false;
#if defined(__AVX512BF16__)
template <>
constexpr bool kHasProducts<Bf16> = true;
#endif
template <class T>
SGL_INLINE F add_squares(F sum, Raw<T> raw) {
#if defined(__AVX512BF16__)
  if constexpr (kEvenOdd<T>) {
    return _mm512_dpbf16_ps(sum, (__m512bh)raw.bits, (__m512bh)raw.bits);
  }
#endif
  return sum;
}
template <class T>
SGL_INLINE F add_elements(F sum, Raw<T> raw) {
#if defined(__AVX512BF16__)
  if constexpr (kEvenOdd<T>) {
    return _mm512_dpbf16_ps(sum, (__m512bh)raw.bits, (__m512bh)(U{} + 0x3f803f80u));
  }
#endif
  return sum;
}

#if defined(__AVX512F__)
// A block of fp16 by two stores: no insertion of the upper half (rms_norm in cache 9 % faster on Zen 5).
SGL_INLINE void write_halves(Fp16* to, Pair v) {
  __m256i* halves = reinterpret_cast<__m256i*>(to);
  _mm256_storeu_si256(halves, _mm512_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT));
  _mm256_storeu_si256(halves + 1, _mm512_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT));
}
#endif

template <class T>
SGL_INLINE Pair load(const T* from) {
#if defined(__AVX512F__)
  if constexpr (kHalf<T> && !kEvenOdd<T>) {  // from memory: no extraction of the upper half
    const __m256i* halves = reinterpret_cast<const __m256i*>(from);
    return {_mm512_cvtph_ps(_mm256_loadu_si256(halves)), _mm512_cvtph_ps(_mm256_loadu_si256(halves + 1))};
  }
#elif defined(__F16C__)
  if constexpr (kHalf<T> && !kEvenOdd<T>) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(from);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
  }
#endif
  return widen(read(from));
}

// A whole block, or its first `count` elements where fewer remain; the others are zero.
template <class T>
SGL_INLINE Pair load(const T* from, int64_t count) {
  return count >= kBlock ? load(from) : widen(read(from, count));
}

}  // namespace SGL_ISA
}  // namespace sgl_kernels
