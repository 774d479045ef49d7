// Vectors of bytes, and what the NVFP4 kernels do with them: AVX2, SSE2 and NEON behind one set of names.
//
// A 32-bit lane is one row (n) of the weight and holds 4 of its k, so sums of four products stay in their lane.
#pragma once

#include <stddef.h>

#include "nvfp4/args.h"
#include "simd/vec_convert-inl.h"

namespace sgl_kernels::nvfp4 {
namespace SGL_ISA {
namespace {

using namespace ::sgl_kernels::SGL_ISA;

typedef int8_t B __attribute__((vector_size(4 * SGL_LANES)));
typedef uint8_t UB __attribute__((vector_size(4 * SGL_LANES)));
typedef int16_t W __attribute__((vector_size(4 * SGL_LANES)));
typedef int32_t I __attribute__((vector_size(4 * SGL_LANES)));

constexpr float kScaleBack = 128.0f;  // 2^8 of scales(), halved because weights are doubled

// Twice each e2m1 value: whole numbers.
alignas(16) constexpr int8_t kSigned[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// vpmaddubsw wants one unsigned operand, so one side of a product carries an offset that a correction takes away.
// Elsewhere both sides are signed. Bounds, in 16 bits: four pairs of 255 * 12 are 24,480.
#if defined(__AVX2__)
constexpr int kWeightOffset = 12;  // of the weight, where it is decoded in registers
constexpr int kDigitOffset = 128;  // of the activation, where decoded weights are read from memory
#else
constexpr int kWeightOffset = 0;
constexpr int kDigitOffset = 0;
#endif

SGL_INLINE B splat4(const void* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return (B)(I{} + v);
}
SGL_INLINE I splat_int(int32_t v) { return I{} + v; }
SGL_INLINE F splat_float(const void* p) { return (F)splat4(p); }

#if defined(__ARM_FEATURE_DOTPROD)
typedef I Sums;
SGL_INLINE Sums products(B a, B b) { return (I)vdotq_s32(vdupq_n_s32(0), (int8x16_t)a, (int8x16_t)b); }
SGL_INLINE I quads(Sums t) { return t; }
#else
typedef W Sums;

// a[2i] b[2i] + a[2i+1] b[2i+1]; on x86 with AVX2 a is unsigned.
SGL_INLINE Sums products(B a, B b) {
#if defined(__AVX2__)
  return (W)_mm256_maddubs_epi16((__m256i)a, (__m256i)b);
#elif defined(__aarch64__)
  const int8x16_t x = (int8x16_t)a, y = (int8x16_t)b;
  return (W)vpaddq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(y)), vmull_high_s8(x, y));
#else
  const W x = (W)a, y = (W)b;
  return ((x << 8) >> 8) * ((y << 8) >> 8) + (x >> 8) * (y >> 8);
#endif
}

SGL_INLINE I quads(Sums t) {  // t[2i] + t[2i+1]
#if defined(__AVX2__)
  return (I)_mm256_madd_epi16((__m256i)t, _mm256_set1_epi16(1));
#elif defined(__aarch64__)
  return (I)vpaddlq_s16((int16x8_t)t);
#else
  return (I)_mm_madd_epi16((__m128i)t, _mm_set1_epi16(1));
#endif
}
#endif

// The byte of 4 bits or less in each byte of `nibbles`, looked up: twice its e2m1 value, plus `offset`.
SGL_INLINE B twice_value(B nibbles, B table) {
#if defined(__AVX2__)
  return (B)_mm256_shuffle_epi8((__m256i)table, (__m256i)nibbles);
#elif defined(__aarch64__)
  return (B)vqtbl1q_s8((int8x16_t)table, (uint8x16_t)nibbles);
#else  // 4, 6, 8, 12 are 4, 5, 6, 7 and 0, 1, 2, 5 more
  const B m = nibbles & 7;
  const B more = (B)(m > 4) + (B)(m > 5) + (B)(m > 6) + (B)(m > 6) + (B)(m > 6);
  const B sign = (B)(nibbles > 7);
  return ((m - more) ^ sign) - sign + table;  // the table holds only the offset
#endif
}

SGL_INLINE B value_table(int offset) {
  B t;
  for (int i = 0; i < 4 * kLanes; ++i) {
#if defined(__AVX2__) || defined(__aarch64__)
    t[i] = static_cast<int8_t>(kSigned[i % 16] + offset);
#else
    t[i] = static_cast<int8_t>(offset);
#endif
  }
  return t;
}

SGL_INLINE B low_nibbles(B packed, B table) { return twice_value(packed & 15, table); }
SGL_INLINE B high_nibbles(B packed, B table) { return twice_value((B)((UB)packed >> 4), table); }

// kLanes finite e4m3 codes >= 0 as fp32 x 2^-8: a code shifted into fp16's fields is that fp16 number, subnormals
// included, whatever the processor does with subnormal fp32.
SGL_INLINE F scales(const uint8_t* codes) {
#if defined(__AVX2__)
  const __m128i raw = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
  return (F)_mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(raw), 7));
#else
  F out;
  for (int i = 0; i < kLanes; ++i) {
    out[i] = fp16_to_float(static_cast<uint16_t>(codes[i] << 7));
  }
  return out;
#endif
}

// The four operands (4 k each) of kLanes rows of a panel's block, from column `column` of its 64.
SGL_INLINE void operands(const uint8_t* block, int64_t column, B table, B (&w)[4]) {
  const uint8_t* at = block + column / 16 * 128 + column % 16 * 4;
  const B first = read_vector<B>(at), second = read_vector<B>(at + 64);
  w[0] = low_nibbles(first, table);
  w[1] = high_nibbles(first, table);
  w[2] = low_nibbles(second, table);
  w[3] = high_nibbles(second, table);
}

constexpr int64_t bytes_of(Element type) { return type == Element::f32 ? 4 : 2; }

// `n` elements from element `at` on, as fp32 in memory order; n is a multiple of 16.
template <class T>
SGL_INLINE void widen_row(const T* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i += 2 * kLanes) {
    Pair v = widen(read(from + i));
    if constexpr (kEvenOdd<T>) {
      v = sequential(v);
    }
    write_vector(to + i, v.a);
    write_vector(to + i + kLanes, v.b);
  }
}

SGL_INLINE void to_floats(const void* base, Element type, int64_t at, int64_t n, float* to) {
  switch (type) {
    case Element::f32:
      return widen_row(static_cast<const float*>(base) + at, n, to);
    case Element::bf16:
      return widen_row(static_cast<const Bf16*>(base) + at, n, to);
    case Element::f16:
      return widen_row(static_cast<const Fp16*>(base) + at, n, to);
  }
}

// `n` results, rounded once; any n. `from` may be read up to the next multiple of 2 * kLanes.
template <class T>
SGL_INLINE void narrow_row(const float* from, int64_t n, T* to) {
  const F quiet = (F)splat_int(0x7FC00000);
  for (int64_t i = 0; i < n; i += 2 * kLanes) {
    Pair v = {read_vector<F>(from + i), read_vector<F>(from + i + kLanes)};
    v = {v.a == v.a ? v.a : quiet, v.b == v.b ? v.b : quiet};  // round_to_bf16 would carry into some NaNs' sign
    if constexpr (kEvenOdd<T>) {
      v = even_odd(v);
    }
    if (n - i >= 2 * kLanes) {
      write(to + i, narrow<T>(v));
    } else {
      write(to + i, narrow<T>(v), n - i);
    }
  }
}

SGL_INLINE void from_floats(const float* from, Element type, int64_t n, void* base, int64_t at) {
  switch (type) {
    case Element::f32:
      return narrow_row(from, n, static_cast<float*>(base) + at);
    case Element::bf16:
      return narrow_row(from, n, static_cast<Bf16*>(base) + at);
    case Element::f16:
      return narrow_row(from, n, static_cast<Fp16*>(base) + at);
  }
}

constexpr int32_t kInfinity = 0x7F800000;  // as bits; the magnitude of NaN is above it

SGL_INLINE I magnitude(F v) { return (I)v & 0x7FFFFFFF; }
SGL_INLINE I larger(I a, I b) { return a > b ? a : b; }
SGL_INLINE int32_t largest(I v) {
  int32_t most = v[0];
  for (int i = 1; i < kLanes; ++i) {
    most = v[i] > most ? v[i] : most;
  }
  return most;
}

// A product that the compiler may not contract with the sum after it: the reference rounds both.
template <class V>
SGL_INLINE V rounded(V v) {
#if defined(__aarch64__)
  asm("" : "+w"(v));
#else
  asm("" : "+x"(v));
#endif
  return v;
}

// The nearest whole numbers, ties to even, of |v| <= 2^22: adding 1.5 * 2^23 leaves them in the low bits.
// Of a larger or non-finite v the answer is any number: unsigned, so that nothing overflows.
SGL_INLINE I nearest(F v) { return (I)((U)(v + splat(12582912.0f)) - 0x4B400000u); }

SGL_INLINE void store_low_bytes(int8_t* to, I v) {
#if defined(__AVX2__)
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
#else
  for (int i = 0; i < kLanes; ++i) {
    to[i] = static_cast<int8_t>(v[i]);
  }
#endif
}

SGL_INLINE float float_of(int32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

}  // namespace
}  // namespace SGL_ISA
}  // namespace sgl_kernels::nvfp4
