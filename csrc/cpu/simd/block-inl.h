// A block of kBlock = 2 * kLanes elements of a storage type as two registers of fp32: what kernels of rows work in.
//
// A block of bf16 is kept as its even elements and its odd elements (two bit operations to load, three to store, no
// shuffle), a block of anything else as its first and its second half. "Block order" names that order: whatever meets a
// bf16 row, a weight say, is brought into it once (rowwise/common-inl.h).
#pragma once

#include "simd/convert-inl.h"

namespace sgl_kernels {
namespace SGL_ISA {

// ---- order --------------------------------------------------------------------------------------------------------

#if SGL_LANES == 16
#define SGL_EVENS 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define SGL_ODDS 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define SGL_LOWS 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define SGL_HIGHS 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif SGL_LANES == 8
#define SGL_EVENS 0, 2, 4, 6, 8, 10, 12, 14
#define SGL_ODDS 1, 3, 5, 7, 9, 11, 13, 15
#define SGL_LOWS 0, 8, 1, 9, 2, 10, 3, 11
#define SGL_HIGHS 4, 12, 5, 13, 6, 14, 7, 15
#else
#define SGL_EVENS 0, 2, 4, 6
#define SGL_ODDS 1, 3, 5, 7
#define SGL_LOWS 0, 4, 1, 5
#define SGL_HIGHS 2, 6, 3, 7
#endif

// Elements 2 i to lane i of a, elements 2 i + 1 to lane i of b; and back.
SGL_INLINE Pair even_odd(Pair v) {
  return {__builtin_shufflevector(v.a, v.b, SGL_EVENS), __builtin_shufflevector(v.a, v.b, SGL_ODDS)};
}
SGL_INLINE Pair sequential(Pair v) {
  return {__builtin_shufflevector(v.a, v.b, SGL_LOWS), __builtin_shufflevector(v.a, v.b, SGL_HIGHS)};
}

// Where element i of a row lies in an array in the block order of T.
template <class T>
SGL_INLINE int64_t position(int64_t i) {
  if constexpr (kEvenOdd<T>) {
    const int64_t in_block = i % kBlock;
    return i - in_block + (in_block % 2) * kLanes + in_block / 2;
  } else {
    return i;
  }
}

// Zeroes the elements of a block from `count` on, in the block order of T.
template <class T>
SGL_INLINE Pair keep_first(Pair v, int64_t count) {
  F index;
  for (int i = 0; i < kLanes; ++i) {
    index[i] = static_cast<float>(kEvenOdd<T> ? 2 * i : i);
  }
  const float limit = static_cast<float>(count);
  const float next = kEvenOdd<T> ? 1.0f : static_cast<float>(kLanes);
  return {index < limit ? v.a : F{}, index + next < limit ? v.b : F{}};
}

// ---- raw ----------------------------------------------------------------------------------------------------------
// Raw<T> is kBlock elements of T in registers: one vector of 16-bit elements, two of fp32.

template <class T>
struct Raw {
  U bits;
};
template <>
struct Raw<float> {
  F a, b;
};

// A whole block.
template <class T>
SGL_INLINE Raw<T> read_raw(const T* from) {
  if constexpr (kHalf<T>) {
    return {load<U>(from)};
  } else {
    return {load<F>(from), load<F>(from + kLanes)};
  }
}
template <class T>
SGL_INLINE void write_raw(T* to, Raw<T> raw) {
  if constexpr (kHalf<T>) {
    store(to, raw.bits);
  } else {
    store(to, raw.a);
    store(to + kLanes, raw.b);
  }
}

// The first `count` elements, 0 < count < kBlock; the rest read as zero and are not written.
#if defined(__AVX512BW__)
template <class T>
SGL_INLINE Raw<T> read_raw(const T* from, int64_t count) {
  const __mmask32 mask = (1u << count) - 1u;
  if constexpr (kHalf<T>) {
    return {(U)_mm512_maskz_loadu_epi16(mask, from)};
  } else {
    return {_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from),
            _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), from + kLanes)};
  }
}
template <class T>
SGL_INLINE void write_raw(T* to, Raw<T> raw, int64_t count) {
  const __mmask32 mask = (1u << count) - 1u;
  if constexpr (kHalf<T>) {
    _mm512_mask_storeu_epi16(to, mask, (__m512i)raw.bits);
  } else {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>(mask), raw.a);
    _mm512_mask_storeu_ps(to + kLanes, static_cast<__mmask16>(mask >> 16), raw.b);
  }
}
#else
template <class T>
SGL_INLINE Raw<T> read_raw(const T* from, int64_t count) {
  Raw<T> raw = {};
  __builtin_memcpy(&raw, from, count * sizeof(T));
  return raw;
}
template <class T>
SGL_INLINE void write_raw(T* to, Raw<T> raw, int64_t count) {
  __builtin_memcpy(to, &raw, count * sizeof(T));
}
#endif

// A whole block past the caches: `to` is aligned to the register.
template <class T>
SGL_INLINE void stream_raw(T* to, Raw<T> raw) {
  if constexpr (kHalf<T>) {
    stream(to, raw.bits);
  } else {
    stream(to, (U)raw.a);
    stream(to + kLanes, (U)raw.b);
  }
}

// ---- raw to fp32 and back, in block order -------------------------------------------------------------------------

#if !defined(__F16C__)
// Out of line: inlined into every loop they would make half of the library.
__attribute__((noinline, unused)) static void widen_fp16(const uint16_t* half, float* value) {
  for (int i = 0; i < kBlock; i += kLanes) {
    store(value + i, from_f16(load<H>(half + i)));
  }
}
__attribute__((noinline, unused)) static void narrow_fp16(const float* value, uint16_t* half) {
  for (int i = 0; i < kBlock; i += kLanes) {
    store(half + i, to_f16(load<F>(value + i)));
  }
}
#endif

// Exact, as from_bf16 and from_f16.
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
  widen_fp16(half, value);
  Pair v;
  __builtin_memcpy(&v, value, sizeof v);
  return v;
#endif
}

// Rounded as round_to_bf16 (NaN: see there) and to_f16; with AVX-512 BF16 what is below 2^-126, smaller than any normal
// bf16, becomes zeros, as in to_bf16.
template <class T>
SGL_INLINE Raw<T> narrow(Pair v) {
  if constexpr (sizeof(T) == 4) {
    return {v.a, v.b};
  } else if constexpr (kEvenOdd<T>) {
#if defined(__AVX512BF16__)
    // Two operations in place of eight (rms_norm in cache 1.27 times as fast on Zen 5).
    const __m512i apart = (__m512i)_mm512_cvtne2ps_pbh(v.b, v.a);
    const W order = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
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
    narrow_fp16(value, half);
    Raw<T> raw;
    __builtin_memcpy(&raw, half, sizeof half);
    return raw;
#endif
  }
}

// ---- from memory to fp32 and back ---------------------------------------------------------------------------------

// A whole block.
template <class T>
SGL_INLINE Pair load_block(const T* from) {
#if defined(__F16C__)
  if constexpr (kHalf<T> && !kEvenOdd<T>) {  // from memory: no extraction of the upper half
    return {from_f16(load<H>(from)), from_f16(load<H>(from + kLanes))};
  }
#endif
  return widen(read_raw(from));
}

// A whole block, or its first `count` elements where fewer remain; the others are zero.
template <class T>
SGL_INLINE Pair load_block(const T* from, int64_t count) {
  return count >= kBlock ? load_block(from) : widen(read_raw(from, count));
}

// The same in sequence whatever T is.
template <class T>
SGL_INLINE Pair load_sequential(const T* from, int64_t count) {
  if constexpr (!kEvenOdd<T>) {
    return load_block(from, count);
  } else {
#if defined(__AVX2__)
    if (count >= kBlock) {  // without a shuffle between halves
#if defined(__AVX512F__)
      return {from_bf16(load<H>(from)), from_bf16(load<H>(from + kLanes))};
#else  // gcc 12 makes two halves of a wider conversion
      const auto* half = reinterpret_cast<const __m128i*>(from);
      return {(F)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(half)), 16),
              (F)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(half + 1)), 16)};
#endif
    }
#endif
    return sequential(load_block(from, count));
  }
}

// A whole block, or its first `count` elements where fewer remain; whole blocks past the caches where asked.
template <class T>
SGL_INLINE void store_block(T* to, Pair v, int64_t count, bool past_caches) {
#if defined(__AVX512F__)
  if constexpr (kHalf<T> && !kEvenOdd<T>) {
    if (count >= kBlock && !past_caches) {  // two stores: no insertion (rms_norm in cache 9 % faster on Zen 5)
      // By intrinsics: gcc joins a plain store to the conversion, and with that one instruction rms_norm took 0.95 of
      // the time where rows are aligned and 1.04 of it where they begin anywhere (a Xeon).
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)to_f16(v.a));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + kLanes), (__m256i)to_f16(v.b));
      return;
    }
  }
#endif
  const Raw<T> raw = narrow<T>(v);
  if (count < kBlock) {
    write_raw(to, raw, count);
  } else if (past_caches) {
    stream_raw(to, raw);
  } else {
    write_raw(to, raw);
  }
}

// ---- sums of raw bf16 ---------------------------------------------------------------------------------------------
// Without widening, products being exact; elements and squares below 2^-126 count as zero.

template <class T>
constexpr bool kHasProducts = false;
#if defined(__AVX512BF16__)
template <>
constexpr bool kHasProducts<Bf16> = true;
#endif

// Lane i: sum + the squares of elements 2 i and 2 i + 1.
template <class T>
SGL_INLINE F add_squares(F sum, Raw<T> raw) {
#if defined(__AVX512BF16__)
  if constexpr (kEvenOdd<T>) {
    return _mm512_dpbf16_ps(sum, (__m512bh)raw.bits, (__m512bh)raw.bits);
  }
#endif
  return sum;
}

// Lane i: sum + elements 2 i and 2 i + 1.
template <class T>
SGL_INLINE F add_elements(F sum, Raw<T> raw) {
#if defined(__AVX512BF16__)
  if constexpr (kEvenOdd<T>) {
    return _mm512_dpbf16_ps(sum, (__m512bh)raw.bits, (__m512bh)(U{} + 0x3f803f80u));
  }
#endif
  return sum;
}

}  // namespace SGL_ISA
}  // namespace sgl_kernels
