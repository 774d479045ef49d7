// Bytes and words inside a register, and products of bytes that are summed in wider lanes.
#pragma once

#include "simd/memory-inl.h"

namespace sgl_kernels {
namespace SGL_ISA {

// ---- order --------------------------------------------------------------------------------------------------------

// Byte j of lane i: lane i of vector j, which fits a byte, unsigned or signed.
template <bool kUnsigned>
SGL_INLINE I interleave_bytes(I a, I b, I c, I d) {
#if defined(__AVX2__)
  // Within 128 bits the packed bytes are a[0..3] b[0..3] c[0..3] d[0..3].
  const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
#endif
#if defined(__AVX512F__)
  const __m512i low = _mm512_packs_epi32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
  const __m512i high = _mm512_packs_epi32(reinterpret_cast<__m512i>(c), reinterpret_cast<__m512i>(d));
  const __m512i packed = kUnsigned ? _mm512_packus_epi16(low, high) : _mm512_packs_epi16(low, high);
  return reinterpret_cast<I>(_mm512_shuffle_epi8(packed, _mm512_broadcast_i32x4(order)));
#elif defined(__AVX2__)
  const __m256i low = _mm256_packs_epi32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b));
  const __m256i high = _mm256_packs_epi32(reinterpret_cast<__m256i>(c), reinterpret_cast<__m256i>(d));
  const __m256i packed = kUnsigned ? _mm256_packus_epi16(low, high) : _mm256_packs_epi16(low, high);
  return reinterpret_cast<I>(_mm256_shuffle_epi8(packed, _mm256_broadcastsi128_si256(order)));
#else
  if constexpr (kUnsigned) return a | b << 8 | c << 16 | d << 24;
  const U x = reinterpret_cast<U>(a) & 0xff, y = reinterpret_cast<U>(b) & 0xff, z = reinterpret_cast<U>(c) & 0xff;
  return reinterpret_cast<I>(x | y << 8 | z << 16 | reinterpret_cast<U>(d) << 24);
#endif
}

// Lanes that fit a signed byte as bytes, 4 neighbours to a lane of the result: lane 4 q + v holds lanes 4 q to 4 q + 3
// of vector v, so that each 128 bits have one word of a, b, c and d.
SGL_INLINE I pack_words(I a, I b, I c, I d) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_packs_epi32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
  const __m512i high = _mm512_packs_epi32(reinterpret_cast<__m512i>(c), reinterpret_cast<__m512i>(d));
  return reinterpret_cast<I>(_mm512_packs_epi16(low, high));
#elif defined(__AVX2__)
  const __m256i low = _mm256_packs_epi32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b));
  const __m256i high = _mm256_packs_epi32(reinterpret_cast<__m256i>(c), reinterpret_cast<__m256i>(d));
  return reinterpret_cast<I>(_mm256_packs_epi16(low, high));
#elif defined(__x86_64__)
  const __m128i low = _mm_packs_epi32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b));
  const __m128i high = _mm_packs_epi32(reinterpret_cast<__m128i>(c), reinterpret_cast<__m128i>(d));
  return reinterpret_cast<I>(_mm_packs_epi16(low, high));
#else
  typedef int8_t Bytes __attribute__((vector_size(kLanes)));
  const Bytes parts[4] = {__builtin_convertvector(a, Bytes), __builtin_convertvector(b, Bytes),
                          __builtin_convertvector(c, Bytes), __builtin_convertvector(d, Bytes)};
  return load<I>(parts);
#endif
}

// The same with all words of a first, then b's, c's and d's: byte i of the result is lane i of the four in a row.
SGL_INLINE I join_words(I a, I b, I c, I d) {
  const I words = pack_words(a, b, c, d);
#if defined(__AVX512F__)
  const I order = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  return reinterpret_cast<I>(
      _mm512_permutexvar_epi32(reinterpret_cast<__m512i>(order), reinterpret_cast<__m512i>(words)));
#elif defined(__AVX2__)
  const I order = {0, 4, 1, 5, 2, 6, 3, 7};
  return reinterpret_cast<I>(
      _mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(words), reinterpret_cast<__m256i>(order)));
#else
  return words;
#endif
}

// Lane i, which fits a signed byte, to to[i].
SGL_INLINE void store_low_bytes(int8_t* to, I v) {
#if defined(__AVX512F__)
  store(to, _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(v)));
#elif defined(__AVX2__)
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
#else
  for (int i = 0; i < kLanes; ++i) {
    to[i] = static_cast<int8_t>(v[i]);
  }
#endif
}

// ---- products -----------------------------------------------------------------------------------------------------

// Lane i: sum + the 4 products of its bytes, u's unsigned and s's signed.
SGL_INLINE I dot_bytes(I sum, I u, I s) {
#if defined(SGL_KERNELS_EMULATED) && defined(__AVX512VNNI__)
  return reinterpret_cast<I>(
      _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(u), reinterpret_cast<__m512i>(s)));
#elif defined(__AVX512VNNI__)
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));  // the intrinsic made gcc 12 copy registers (481 -> 727)
  return sum;
#else
  const W even_u = reinterpret_cast<W>(u & 0x00ff00ff), odd_u = reinterpret_cast<W>((u >> 8) & 0x00ff00ff);
  const W all = reinterpret_cast<W>(s);
  const W odd_s = all >> 8, even_s = (all << 8) >> 8;
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i even = _mm256_madd_epi16(reinterpret_cast<__m256i>(even_u), reinterpret_cast<__m256i>(even_s));
  const __m256i odd = _mm256_madd_epi16(reinterpret_cast<__m256i>(odd_u), reinterpret_cast<__m256i>(odd_s));
  return sum + reinterpret_cast<I>(even) + reinterpret_cast<I>(odd);
#elif defined(__x86_64__) && !defined(__AVX2__)
  const __m128i even = _mm_madd_epi16(reinterpret_cast<__m128i>(even_u), reinterpret_cast<__m128i>(even_s));
  const __m128i odd = _mm_madd_epi16(reinterpret_cast<__m128i>(odd_u), reinterpret_cast<__m128i>(odd_s));
  return sum + reinterpret_cast<I>(even) + reinterpret_cast<I>(odd);
#else
  // A product of a byte and a signed byte fits 16 bits, but two of them may not: add in 32.
  const I even = reinterpret_cast<I>(even_u * even_s), odd = reinterpret_cast<I>(odd_u * odd_s);
  return sum + ((even << 16) >> 16) + (even >> 16) + ((odd << 16) >> 16) + (odd >> 16);
#endif
#endif
}

// Products of bytes in two steps, so that several first steps are summed before one second step; levels with
// AVX-512 have vpdpbusd instead.
#if !defined(__AVX512F__)
// vpmaddubsw wants its first operand unsigned.
#if defined(__AVX2__)
constexpr bool kUnsignedFirst = true;
#else
constexpr bool kUnsignedFirst = false;
#endif

#if defined(__ARM_FEATURE_DOTPROD)
typedef I Sums;
SGL_INLINE Sums products(B a, B b) { return (I)vdotq_s32(vdupq_n_s32(0), (int8x16_t)a, (int8x16_t)b); }
SGL_INLINE I quads(Sums t) { return t; }
#else
typedef W Sums;

// Word i: a[2i] b[2i] + a[2i+1] b[2i+1], which must fit it; a's bytes are unsigned where kUnsignedFirst.
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

// Lane i: t[2i] + t[2i+1], the products of its four bytes.
SGL_INLINE I quads(Sums t) {
#if defined(__AVX2__)
  return (I)_mm256_madd_epi16((__m256i)t, _mm256_set1_epi16(1));
#elif defined(__aarch64__)
  return (I)vpaddlq_s16((int16x8_t)t);
#else
  return (I)_mm_madd_epi16((__m128i)t, _mm_set1_epi16(1));
#endif
}
#endif
#endif

}  // namespace SGL_ISA
}  // namespace sgl_kernels
