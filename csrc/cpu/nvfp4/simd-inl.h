// What the NVFP4 kernels say in the words of simd/: panels' operands, scales, rows of any element type. AVX2, SSE2,
// NEON.
//
// A 32-bit lane is one row (n) of the weight and holds 4 of its k, so sums of four products stay in their lane.
#pragma once

#include "nvfp4/args.h"
#include "simd/block-inl.h"
#include "simd/bytes-inl.h"

namespace sgl_kernels::nvfp4 {
namespace SGL_ISA {
namespace {

using namespace ::sgl_kernels::SGL_ISA;

constexpr float kScaleBack = 128.0f;  // 2^8 of scales(), halved because weights are doubled

// Twice each e2m1 value: whole numbers.
alignas(16) constexpr int8_t kSigned[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// One side of a product is unsigned where kUnsignedFirst says so; it carries an offset that a correction takes away.
// Elsewhere both sides are signed. Bounds, in 16 bits: four pairs of 255 * 12 are 24,480.
constexpr int kWeightOffset = kUnsignedFirst ? 12 : 0;  // of the weight, where it is decoded in registers
constexpr int kDigitOffset = kUnsignedFirst ? 128 : 0;  // of the activation, where decoded weights are read from memory

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
  typedef uint8_t Codes __attribute__((vector_size(kLanes)));
  return from_f16(__builtin_convertvector(load<Codes>(codes), H) << 7);
#endif
}

// The four operands (4 k each) of kLanes rows of a panel's block, from column `column` of its 64.
SGL_INLINE void operands(const uint8_t* block, int64_t column, B table, B (&w)[4]) {
  const uint8_t* at = block + column / 16 * 128 + column % 16 * 4;
  const B first = load<B>(at), second = load<B>(at + 64);
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
    Pair v = widen(read_raw(from + i));
    if constexpr (kEvenOdd<T>) {
      v = sequential(v);
    }
    store(to + i, v.a);
    store(to + i + kLanes, v.b);
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
  for (int64_t i = 0; i < n; i += 2 * kLanes) {
    Pair v = {load<F>(from + i), load<F>(from + i + kLanes)};
    v = {quiet(v.a), quiet(v.b)};  // round_to_bf16 would carry into some NaNs' sign
    if constexpr (kEvenOdd<T>) {
      v = even_odd(v);
    }
    if (n - i >= 2 * kLanes) {
      write_raw(to + i, narrow<T>(v));
    } else {
      write_raw(to + i, narrow<T>(v), n - i);
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

}  // namespace
}  // namespace SGL_ISA
}  // namespace sgl_kernels::nvfp4
