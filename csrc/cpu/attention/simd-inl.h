// Vectors of float for whatever instruction set this file is compiled with: 16 lanes (AVX-512), 8 (AVX2) or 4
// (SSE2 and NEON), in the compilers' vector extension, with intrinsics only where the extension has no word for it.
// Everything is in an unnamed namespace, so that each instruction set keeps its own copy.
#pragma once

#include <stdint.h>
#include "attention/args.h"
#include "simd/transpose-inl.h"

#define SGL_INLINE inline __attribute__((always_inline))
#define SGL_UNROLL _Pragma("GCC unroll 32")

namespace sgl_kernels::attention {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
// Full width registers: 32 of them with AVX-512 and NEON, 16 otherwise.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr bool kManyRegisters = true;
#else
constexpr bool kManyRegisters = false;
#endif

typedef float F __attribute__((vector_size(4 * kLanes)));
typedef int32_t I __attribute__((vector_size(4 * kLanes)));
typedef uint32_t U __attribute__((vector_size(4 * kLanes)));
typedef uint16_t H __attribute__((vector_size(2 * kLanes)));

// Loads and stores go through memcpy: any alignment, any declared type behind the pointer.
template <class V>
SGL_INLINE V load(const void* p) {
  V x;
  __builtin_memcpy(&x, p, sizeof(V));
  return x;
}
template <class V>
SGL_INLINE void store(void* p, V x) {
  __builtin_memcpy(p, &x, sizeof(V));
}
template <class V>
SGL_INLINE V load_some(const void* p, int n) {  // the first n lanes; the rest are 0 and their memory is not touched
  V x{};
  __builtin_memcpy(&x, p, static_cast<size_t>(n) * (sizeof(V) / kLanes));
  return x;
}

SGL_INLINE F splat(float x) {  // a pure broadcast: x may be any bit pattern
#if defined(__AVX512F__)
  return _mm512_set1_ps(x);
#elif defined(__AVX2__)
  return _mm256_set1_ps(x);
#else
  return F{x, x, x, x};
#endif
}
// x as a value of its own: the compiler may not fuse the product that it is into an FMA.
SGL_INLINE F rounded(F x) {
#if defined(__AVX512F__) && !defined(SGL_KERNELS_EMULATED)
  asm("" : "+v"(x));
#elif defined(__x86_64__) && !defined(SGL_KERNELS_EMULATED)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#else
  volatile F kept = x;
  x = kept;
#endif
  return x;
}
SGL_INLINE I bits(F x) { return reinterpret_cast<I>(x); }
SGL_INLINE F as_float(I x) { return reinterpret_cast<F>(x); }
SGL_INLINE F as_float(U x) { return reinterpret_cast<F>(x); }

// max(a, b), and b where either is NaN: so the second operand's NaN survives.
SGL_INLINE F max(F a, F b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

SGL_INLINE I lane_index() {
  I x{};
  SGL_UNROLL for (int i = 0; i < kLanes; ++i) x[i] = i;
  return x;
}

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

SGL_INLINE float sum_lanes(F x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(x);
#else
  float s = 0;
  SGL_UNROLL for (int i = 0; i < kLanes; ++i) s += x[i];
  return s;
#endif
}

SGL_INLINE float max_lanes(F x) {
  float m = x[0];
  for (int i = 1; i < kLanes; ++i) m = m > x[i] ? m : x[i];
  return m;
}

// 2^t. Degree 3: relative error 7.5e-5, a fiftieth of a bf16 rounding; degree 5: 7.5e-8 (minimax on [-1/2, 1/2]).
// t = -inf gives 0 and NaN gives NaN; above 127 the result is only guaranteed with AVX-512.
template <int kDegree>
SGL_INLINE F exp2(F t) {
#if defined(__AVX512F__)
  const F f = _mm512_reduce_ps(t, 0);  // t - round(t); 0 for infinities
  const F whole = t - f;
#else
  const F x = max(splat(-127.0f), t);
  // 1.5 * 2^23 + 127: adding it leaves round(x) + 127, an exponent as a float stores it, in the low bits.
  const F magic = splat(12583039.0f);
  const F shifted = x + magic;
  const F f = x - (shifted - magic);
#endif
  F p;
  if (kDegree == 3) {
    p = splat(0.0551716661f);
    p = p * f + splat(0.242611152f);
    p = p * f + splat(0.693260989f);
    p = p * f + splat(0.999928072f);
  } else {
    p = splat(0.00132764717f);
    p = p * f + splat(0.0096755418f);
    p = p * f + splat(0.0555071328f);
    p = p * f + splat(0.240221197f);
    p = p * f + splat(0.693146967f);
    p = p * f + splat(1.0f);
  }
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, whole);
#else
  const U exponent = reinterpret_cast<U>(shifted) << 23;  // the magic number's own bits are shifted out
  return p * as_float(exponent);                          // 0 for x = -127
#endif
}

// tanh for softcap: 1 - 2 / (e^2x + 1), and a series below 0.3 where that form cancels; relative error below 4e-7.
SGL_INLINE F tanh(F x) {
  const F limit = splat(15.0f);
  const F a = x < -limit ? -limit : (x > limit ? limit : x);
  const F big = 1.0f - 2.0f / (exp2<5>(a * 2.88539008f) + 1.0f);
  const F s = x * x;
  F r = splat(21844.0f / 6081075.0f);
  r = r * s + splat(-1382.0f / 155925.0f);
  r = r * s + splat(62.0f / 2835.0f);
  r = r * s + splat(-17.0f / 315.0f);
  r = r * s + splat(2.0f / 15.0f);
  r = r * s + splat(-1.0f / 3.0f);
  const F small = x + x * s * r;
  return s < splat(0.09f) ? small : big;
}

// bf16 and fp16 to float and back, round to nearest even.
SGL_INLINE U widen(H h) {
#if defined(__AVX512F__)
  return reinterpret_cast<U>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(h)));  // gcc 12: two halves, five moves
#else
  return __builtin_convertvector(h, U);
#endif
}

SGL_INLINE F from_bf16(H h) { return as_float(widen(h) << 16); }

SGL_INLINE F from_f16(H h) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(reinterpret_cast<__m256i>(h));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(reinterpret_cast<__m128i>(h));
#elif defined(__aarch64__)
  typedef __fp16 Half4 __attribute__((vector_size(8)));
  return __builtin_convertvector(reinterpret_cast<Half4>(h), F);
#else
  const U u = widen(h);
  const U magnitude = (u & 0x7fff) << 13;
  // Multiplying by 2^112 rebases the exponent and makes subnormals exact; infinities and NaN keep their exponent.
  const F scaled = as_float(magnitude) * 0x1p112f;
  const U special = reinterpret_cast<U>((u & 0x7c00) == 0x7c00);
  const U finite = reinterpret_cast<U>(scaled);
  return as_float(((special & (magnitude | 0x7f800000u)) | (~special & finite)) | ((u & 0x8000) << 16));
#endif
}

SGL_INLINE H to_bf16(F x) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<H>(_mm512_cvtneps_pbh(x));  // below 2^-126 it gives 0, as vdpbf16ps reads such numbers
#endif
  const U u = reinterpret_cast<U>(x);
  const U rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  const U nan = (u >> 16) | 0x40;
  return __builtin_convertvector(x == x ? rounded : nan, H);
}

#if defined(__AVX512BF16__)
// Lane i: bf16(a[i]) in the low half, bf16(b[i]) in the high half.
SGL_INLINE F bf16_pairs(F a, F b) {
  typedef int16_t S __attribute__((vector_size(64)));
  const S order = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));
  return reinterpret_cast<F>(_mm512_permutexvar_epi16(reinterpret_cast<__m512i>(order), both));
}
#endif

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

template <Type kType>
SGL_INLINE F load_as_float(const char* p) {
  if constexpr (kType == Type::f32) return load<F>(p);
  if constexpr (kType == Type::bf16) return from_bf16(load<H>(p));
  if constexpr (kType == Type::f16) return from_f16(load<H>(p));
}

template <Type kType>
SGL_INLINE F load_as_float(const char* p, int n) {
#if defined(__AVX512F__)
  const __mmask16 m = static_cast<__mmask16>((1u << n) - 1);  // n <= 16
  if constexpr (kType == Type::f32) return _mm512_maskz_loadu_ps(m, p);
  const H h = reinterpret_cast<H>(_mm256_maskz_loadu_epi16(m, p));
#elif defined(__AVX2__)
  if constexpr (kType == Type::f32) {  // a masked load touches no memory of the other lanes
    return _mm256_maskload_ps(reinterpret_cast<const float*>(p), reinterpret_cast<__m256i>(lane_index() < n));
  }
  const H h = load_some<H>(p, n);
#else
  if constexpr (kType == Type::f32) return load_some<F>(p, n);
  const H h = load_some<H>(p, n);
#endif
  return kType == Type::bf16 ? from_bf16(h) : from_f16(h);
}

SGL_INLINE void store_from_float(char* p, F x, Type type, int n) {
  if (type == Type::f32) {
    if (n == kLanes) return store(p, x);
    __builtin_memcpy(p, &x, static_cast<size_t>(n) * 4);
  } else {
    const H h = type == Type::bf16 ? to_bf16(x) : to_f16(x);
    if (n == kLanes) return store(p, h);
    __builtin_memcpy(p, &h, static_cast<size_t>(n) * 2);
  }
}

}  // namespace
}  // namespace sgl_kernels::attention
