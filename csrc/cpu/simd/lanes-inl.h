// Words on one register of fp32 or of 32-bit integers: copies of a value, the nearer and the farther, roots, whole
// numbers, questions to all lanes, and what lanes add up to.
#pragma once

#include "simd/isa-inl.h"

namespace sgl_kernels {
namespace SGL_ISA {

// ---- one value, and its bits --------------------------------------------------------------------------------------

// Lane i: x, whatever its bits are.
SGL_INLINE F splat(float x) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(x);
#elif defined(__AVX2__)
  return _mm256_set1_ps(x);
#else
  return F{x, x, x, x};
#endif
}

// Lane i: x.
SGL_INLINE I splat_int(int32_t x) { return I{} + x; }

// Lane i: the four bytes at p.
SGL_INLINE I splat_word(const void* p) {
  int32_t x;
  __builtin_memcpy(&x, p, 4);
  return splat_int(x);
}

// Lane i: i.
SGL_INLINE I lane_index() {
  I x{};
  SGL_UNROLL for (int i = 0; i < kLanes; ++i) x[i] = i;
  return x;
}

// The same bits under another type.
SGL_INLINE I bits(F x) { return reinterpret_cast<I>(x); }
SGL_INLINE F as_float(I x) { return reinterpret_cast<F>(x); }
SGL_INLINE F as_float(U x) { return reinterpret_cast<F>(x); }
SGL_INLINE float as_float(int32_t x) { return __builtin_bit_cast(float, x); }

// The bits of |x|, which order numbers as integers do: infinity is kInfinity, and NaN is above it.
constexpr int32_t kInfinity = 0x7F800000;
SGL_INLINE I magnitude(F x) { return bits(x) & 0x7FFFFFFF; }

// x, a register or a float, as a value of its own: the compiler may not fuse the product that it is into an FMA.
template <class V>
SGL_INLINE V rounded(V x) {
#if defined(__AVX512F__) && !defined(SGL_KERNELS_EMULATED)
  asm("" : "+v"(x));
#elif defined(__x86_64__) && !defined(SGL_KERNELS_EMULATED)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#else
  volatile V kept = x;
  x = kept;
#endif
  return x;
}

// ---- arithmetic ---------------------------------------------------------------------------------------------------

// a * b + c, rounded once where there is an instruction for it (not on SSE2).
SGL_INLINE F fma(F a, F b, F c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

// a > b ? a : b, so b where either is NaN, and where both are zeros: the second operand's NaN survives.
SGL_INLINE F max(F a, F b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// a < b ? a : b, in the same way.
SGL_INLINE F min(F a, F b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

// The nearer of x and the limit; NaN stays NaN.
SGL_INLINE F at_least(F x, float limit) { return max(splat(limit), x); }
SGL_INLINE F at_most(F x, float limit) { return min(splat(limit), x); }

// a > b ? a : b, of integers.
SGL_INLINE I larger(I a, I b) {
#if defined(__AVX512F__)
  return reinterpret_cast<I>(_mm512_max_epi32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<I>(_mm256_max_epi32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#else
  return a > b ? a : b;
#endif
}

// The square root, correctly rounded.
SGL_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
SGL_INLINE F square_root(F x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(x);
#else
  SGL_UNROLL for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// The nearest whole number, ties to even, of |x| <= 2^22; of a larger or non-finite x any number.
SGL_INLINE I nearest(F x) {
#if defined(__AVX512F__)
  return reinterpret_cast<I>(_mm512_cvtps_epi32(x));
#elif defined(__AVX2__)
  return reinterpret_cast<I>(_mm256_cvtps_epi32(x));
#else  // 1.5 * 2^23 leaves it in the low bits; unsigned, so that nothing overflows
  return reinterpret_cast<I>(reinterpret_cast<U>(x + splat(12582912.0f)) - 0x4b400000u);
#endif
}

// x, and the NaN that arithmetic makes (0x7fc00000) in place of any other: round_to_bf16 counts on that.
SGL_INLINE F quiet(F x) { return x == x ? x : splat(__builtin_nanf("")); }

// ---- all lanes ----------------------------------------------------------------------------------------------------

// Whether any lane is not 0.
SGL_INLINE bool any(I mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256(reinterpret_cast<__m256i>(mask), reinterpret_cast<__m256i>(mask));
#else
  int32_t all = 0;
  SGL_UNROLL for (int i = 0; i < kLanes; ++i) all |= mask[i];
  return all != 0;
#endif
}

// Whether a < b in any lane: any(a < b) without the mask's way through a register of its own.
SGL_INLINE bool any_below(F a, F b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)) != 0;
#elif defined(__x86_64__)
  return _mm_movemask_ps((F)(a < b)) != 0;
#else
  return vmaxvq_u32((uint32x4_t)(a < b)) != 0;
#endif
}

// The sum of the lanes by halves: lanes i and i + n/2 are added, then those of the half, and so on. Through memory (a
// loop over lanes) a sum costs 20 cycles, and a row takes up to two.
SGL_INLINE float sum(F x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(x);
#else
  typedef float Quarter __attribute__((vector_size(16)));
#if SGL_LANES == 8
  const Quarter q = __builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7);
#else
  const Quarter q = x;
#endif
  const Quarter half = q + __builtin_shufflevector(q, q, 2, 3, 0, 1);
  return half[0] + half[1];
#endif
}

// The sum of up to 8 lanes one after the other; of 16 by halves.
SGL_INLINE float sum_in_order(F x) {
#if defined(__AVX512F__)
  return sum(x);
#else
  float s = 0;
  SGL_UNROLL for (int i = 0; i < kLanes; ++i) s += x[i];
  return s;
#endif
}

// The largest lane: m > lane ? m : lane for one after the other, so a NaN counts from its lane on if none follows.
SGL_INLINE float max_lanes(F x) {
  float m = x[0];
  for (int i = 1; i < kLanes; ++i) m = m > x[i] ? m : x[i];
  return m;
}
SGL_INLINE int32_t max_lanes(I x) {
  int32_t m = x[0];
  for (int i = 1; i < kLanes; ++i) m = m > x[i] ? m : x[i];
  return m;
}

}  // namespace SGL_ISA
}  // namespace sgl_kernels
