// Powers, the polynomials in them, and reciprocals: registers of fp32, alone or several in step.
#pragma once

#include "simd/lanes-inl.h"

namespace sgl_kernels {
namespace SGL_ISA {

// ---- several in step ----------------------------------------------------------------------------------------------

// Vectors that go through a calculation in step, an operation of all before the next: a processor keeps too few
// waiting operations to overlap calculations that follow one another (gelu_tanh in bf16 took 20 cycles for 32 elements
// on Zen 5, twice what its operations need).
template <int n>
struct Many {
  F v[n];
};

// Register i: f(i).
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

// ---- powers -------------------------------------------------------------------------------------------------------
// Of 2^t there are four, for what their callers need: exp2 to any accuracy of the two, also of NaN; exp2_near and
// quick_power without one operation where scalef takes the floor itself; exponential of e.

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

// tanh for softcap: 1 - 2 / (e^2x + 1), and a series below 0.3 where that form cancels; relative error below 5e-7.
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

// 2^t, to a relative 7.5e-5; of -inf 0; NaN may become anything, and so may what is above 127 without AVX-512.
SGL_INLINE F exp2_near(F t) {
#if defined(__AVX512F__)
  // scalef takes the floor of its exponent: with a polynomial on [0, 1) the whole part is not needed by itself.
  const F f = _mm512_reduce_ps(t, 1);
  F p = splat(0.0780245215f);
  p = p * f + splat(0.2260672f);
  p = p * f + splat(0.6958335f);
  p = p * f + splat(0.9999252f);
  return _mm512_scalef_ps(p, t);
#else
  return exp2<3>(t);
#endif
}

// 2^t within 4e-6 (for bf16 7.5e-5, a twenty-fifth of its half unit), for every t: 0 or next to it for -inf, infinity
// for +inf (from 126 on without AVX-512). NaN may become anything.
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

constexpr float kLog2E = 1.44269504f;

// e^x for -87.3 <= x <= 88, so that result and scale are normal numbers; of NaN it makes anything.
template <int n>
SGL_INLINE Many<n> exponential(const Many<n>& x) {
  constexpr float kTerms[] = {
      1.383674214e-3f, 8.374898694e-3f, 4.166823253e-2f, 0.166664198f, 0.4999999106f, 1.0f, 1.0f};
  const F magic = splat(12582912.0f);
  const Many<n> whole = SGL_EACH(n, fma(x.v[i], splat(kLog2E), magic));
  const Many<n> times = SGL_EACH(n, whole.v[i] - magic);
  Many<n> r = SGL_EACH(n, fma(times.v[i], splat(-0.693359375f), x.v[i]));  // ln 2 in two parts, the first exact here
  r = SGL_EACH(n, fma(times.v[i], splat(2.12194440e-4f), r.v[i]));
  const Many<n> p = polynomial(kTerms, r);
  return SGL_EACH(n, (F)((U)p.v[i] + ((U)whole.v[i] << 23)));
}

}  // namespace SGL_ISA
}  // namespace sgl_kernels
