// Vectors of fp32 for the norm-like kernels: lanes, order, raw loads and stores. With simd/vec_convert-inl.h, the only
// file that knows the instruction set.
//
// A kernel body includes this file and is compiled once per instruction set, each time in the namespace SGL_ISA, so
// no symbol of one level can replace a symbol of another. Nothing here includes a header with inline functions of
// the standard library, for the same reason. Arithmetic uses the compiler's vector types (+ - * / < on lanes).
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512BF16__)
#define SGL_ISA avx512bf16
#define SGL_LANES 16
#elif defined(__AVX512BW__)
#define SGL_ISA avx512
#define SGL_LANES 16
#elif defined(__AVX2__)
#define SGL_ISA avx2
#define SGL_LANES 8
#else
#define SGL_ISA baseline
#define SGL_LANES 4
#endif
#define SGL_INLINE static inline __attribute__((always_inline))

namespace sgl_kernels {
namespace SGL_ISA {

constexpr int kLanes = SGL_LANES;
constexpr int kBlock = 2 * kLanes;  // elements of one Pair, the unit every loop works in

typedef float F __attribute__((vector_size(4 * SGL_LANES)));
typedef uint32_t U __attribute__((vector_size(4 * SGL_LANES)));
typedef float Quarter __attribute__((vector_size(16)));

struct Pair {
  F a, b;
};

// Storage types. A block of bf16 is kept as its even elements and its odd elements (two bit operations to load, three
// to store, no shuffle), a block of anything else as its first and its second half. "Block order" names that order:
// whatever meets a bf16 row, a weight say, is brought into it once (rowwise/common-inl.h).
struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};
template <class T>
constexpr bool kEvenOdd = false;
template <>
constexpr bool kEvenOdd<Bf16> = true;
template <class T>
constexpr bool kHalf = sizeof(T) == 2;  // short polynomials suffice

// ---- lanes ----------------------------------------------------------------------------------------------------

SGL_INLINE F splat(float value) { return value - F{}; }

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

// By shuffles: through memory (a loop over lanes) a sum costs 20 cycles, and a row takes up to two.
SGL_INLINE float sum(F v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v);
#else
#if SGL_LANES == 8
  const Quarter q = __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
#else
  const Quarter q = v;
#endif
  const Quarter half = q + __builtin_shufflevector(q, q, 2, 3, 0, 1);
  return half[0] + half[1];
#endif
}

SGL_INLINE float square_root(float value) { return __builtin_sqrtf(value); }

// The nearer of x and the limit; NaN stays NaN.
SGL_INLINE F at_least(F x, float limit) {
#if defined(__AVX512F__)
  return _mm512_max_ps(_mm512_set1_ps(limit), x);
#elif defined(__AVX2__)
  return _mm256_max_ps(_mm256_set1_ps(limit), x);
#else
  return x < limit ? splat(limit) : x;
#endif
}

SGL_INLINE F at_most(F x, float limit) {
#if defined(__AVX512F__)
  return _mm512_min_ps(_mm512_set1_ps(limit), x);
#elif defined(__AVX2__)
  return _mm256_min_ps(_mm256_set1_ps(limit), x);
#else
  return x > limit ? splat(limit) : x;
#endif
}

// The smaller; b where a is NaN.
SGL_INLINE F lesser(F a, F b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

// Whether a is below b in any lane.
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

// Vectors that go through a calculation in step, an operation of all before the next: a processor keeps too few
// waiting operations to overlap calculations that follow one another (gelu_tanh in bf16 took 20 cycles for 32 elements
// on Zen 5, twice what its operations need).
template <int n>
struct Many {
  F v[n];
};

template <int n, class Function>
SGL_INLINE Many<n> each(Function f) {
  Many<n> made;
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) {
    made.v[i] = f(i);
  }
  return made;
}
#define SGL_EACH(n, ...) each<n>([&](int i) __attribute__((always_inline)) -> F { return __VA_ARGS__; })

// 1 / v for v in [1, 2^126]. exact: to fp32 accuracy, else within 2^-14. The 512-bit division costs 16 cycles; at 256
// bits it runs beside the polynomials, and an estimate with one step of Newton's lost 5 %.
template <bool exact, int n>
SGL_INLINE Many<n> reciprocal(const Many<n>& v) {
#if defined(__AVX512F__)
  const Many<n> guess = SGL_EACH(n, _mm512_rcp14_ps(v.v[i]));
  if constexpr (!exact) {
    return guess;
  }
  const Many<n> error = SGL_EACH(n, splat(1.0f) - v.v[i] * guess.v[i]);
  return SGL_EACH(n, fma(guess.v[i], error.v[i], guess.v[i]));
#else
  return SGL_EACH(n, 1.0f / v.v[i]);
#endif
}

// c[0] f^(terms - 1) + ... + c[terms - 1].
template <int terms, int n>
SGL_INLINE Many<n> polynomial(const float (&c)[terms], const Many<n>& f) {
  Many<n> p = SGL_EACH(n, fma(splat(c[0]), f.v[i], splat(c[1])));
#pragma GCC unroll 16
  for (int term = 2; term < terms; ++term) {
    p = SGL_EACH(n, fma(p.v[i], f.v[i], splat(c[term])));
  }
  return p;
}

// 2^t within 4e-6 (for bf16 7.5e-5, a twenty-fifth of its half unit), for every t: 0 or next to it for -inf, infinity
// for +inf. NaN may become anything.
template <class T, int n>
SGL_INLINE Many<n> quick_power(const Many<n>& t) {
#if defined(__AVX512DQ__)
  constexpr float kTerms[] = {0.01353416778f, 0.05201146007f, 0.2414427549f, 0.6930038333f, 1.000002623f};
  constexpr float kFewer[] = {0.07802452264f, 0.2260671554f, 0.6958335405f, 0.9999252186f};
  // t - floor(t), and 0 of infinities
  const Many<n> f = SGL_EACH(n, _mm512_reduce_ps(t.v[i], _MM_FROUND_TO_NEG_INF));
  const Many<n> p = kEvenOdd<T> ? polynomial(kFewer, f) : polynomial(kTerms, f);
  return SGL_EACH(n, _mm512_scalef_ps(p.v[i], t.v[i]));  // p * 2^floor(t)
#else
  constexpr float kTerms[] = {9.570005350e-3f, 5.591868237e-2f, 0.2402475327f, 0.6931217313f, 0.9999992848f};
  const F magic = splat(12582912.0f);
  const Many<n> tame = SGL_EACH(n, at_least(t.v[i], -126.0f));
  const Many<n> whole = SGL_EACH(n, tame.v[i] + magic);  // 1.5 * 2^23 + n: n in the low bits
  const Many<n> f = SGL_EACH(n, tame.v[i] - (whole.v[i] - magic));
  const Many<n> p = polynomial(kTerms, f);
  return SGL_EACH(n, t.v[i] >= 126.0f ? splat(__builtin_inff()) : (F)((U)p.v[i] + ((U)whole.v[i] << 23)));
#endif
}

// ---- order inside a block ---------------------------------------------------------------------------------------

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

SGL_INLINE Pair even_odd(Pair v) {
  return {__builtin_shufflevector(v.a, v.b, SGL_EVENS), __builtin_shufflevector(v.a, v.b, SGL_ODDS)};
}

SGL_INLINE Pair sequential(Pair v) {
  return {__builtin_shufflevector(v.a, v.b, SGL_LOWS), __builtin_shufflevector(v.a, v.b, SGL_HIGHS)};
}

// ---- one block, raw ---------------------------------------------------------------------------------------------
// Raw<T> is kBlock elements of T in registers: one vector of 16-bit elements, two of fp32.

template <class T>
struct Raw {
  U bits;
};
template <>
struct Raw<float> {
  F a, b;
};

// Vector by vector: gcc 12 keeps an aggregate that memcpy filled on the stack, two dead stores per block.
template <class V>
SGL_INLINE V read_vector(const void* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
SGL_INLINE void write_vector(void* to, V v) {
  __builtin_memcpy(to, &v, sizeof v);
}

template <class T>
SGL_INLINE Raw<T> read(const T* from) {
  if constexpr (kHalf<T>) {
    return {read_vector<U>(from)};
  } else {
    return {read_vector<F>(from), read_vector<F>(from + kLanes)};
  }
}

template <class T>
SGL_INLINE void write(T* to, Raw<T> raw) {
  if constexpr (kHalf<T>) {
    write_vector(to, raw.bits);
  } else {
    write_vector(to, raw.a);
    write_vector(to + kLanes, raw.b);
  }
}

// The first `count` elements, 0 < count < kBlock; the rest read as zero and are not written.
#if defined(__AVX512BW__)
template <class T>
SGL_INLINE Raw<T> read(const T* from, int64_t count) {
  const __mmask32 mask = (1u << count) - 1u;
  if constexpr (kHalf<T>) {
    return {(U)_mm512_maskz_loadu_epi16(mask, from)};
  } else {
    return {_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from),
            _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), from + kLanes)};
  }
}

template <class T>
SGL_INLINE void write(T* to, Raw<T> raw, int64_t count) {
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
SGL_INLINE Raw<T> read(const T* from, int64_t count) {
  Raw<T> raw = {};
  __builtin_memcpy(&raw, from, count * sizeof(T));
  return raw;
}

template <class T>
SGL_INLINE void write(T* to, Raw<T> raw, int64_t count) {
  __builtin_memcpy(to, &raw, count * sizeof(T));
}
#endif

SGL_INLINE void stream_vector(void* to, U v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(to), (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256(static_cast<__m256i*>(to), (__m256i)v);
#elif defined(__x86_64__)
  _mm_stream_si128(static_cast<__m128i*>(to), (__m128i)v);
#else
  write_vector(to, v);
#endif
}

// Past the caches: `to` is aligned to the vector.
template <class T>
SGL_INLINE void stream(T* to, Raw<T> raw) {
  if constexpr (kHalf<T>) {
    stream_vector(to, raw.bits);
  } else {
    stream_vector(to, (U)raw.a);
    stream_vector(to + kLanes, (U)raw.b);
  }
}

SGL_INLINE void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace SGL_ISA
}  // namespace sgl_kernels
