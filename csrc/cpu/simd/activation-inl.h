// Sigmoid gates, SiLU and GELU on several registers in step.
//
// T is the storage type of the rows. Only fp32 is calculated exactly; fp16 takes approximations with a relative error
// under 7e-5, where half its unit is 2.4e-4 to 4.9e-4, and bf16, whose unit is eight times that, under 1.4e-4; those of
// gelu_erf, whose tail answers to an error of its reciprocal more than once, are under 2.4e-4 and 3.1e-4.
#pragma once

#include "simd/block-inl.h"
#include "simd/exp-inl.h"

namespace sgl_kernels {
namespace SGL_ISA {

// Far to the left the factor of a gate is no normal number while its product with x, or with what that is multiplied
// by, still may be. Those lanes are rare: vectors that hold one are multiplied again by what is missing, e^(t + 87). Of
// -inf it is 0, which makes NaN of -inf, as torch does.
constexpr float kLeft = -87.0f;
template <int n>
SGL_INLINE Many<n> times_missing(const Many<n>& v, const Many<n>& t) {
  const Many<n> below = SGL_EACH(n, at_most(at_least(t.v[i] - kLeft, kLeft), 0.0f));
  const Many<n> power = exponential(below);
  const Many<n> missing = SGL_EACH(n, t.v[i] < 2.0f * kLeft ? F{} : power.v[i]);
  return SGL_EACH(n, t.v[i] < kLeft ? v.v[i] * missing.v[i] : v.v[i]);
}

// v where no lane of t is below kLeft. (Inline: a call, even one that is never made, leaves no vector register to the
// loop around it: group_norm with silu took 1.19 times as long in fp32.)
template <int n>
SGL_INLINE Many<n> with_left(const Many<n>& v, const Many<n>& t) {
  F least = splat(kLeft);
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) {
    least = min(t.v[i], least);
  }
  if (__builtin_expect(any_below(least, splat(kLeft)), 0)) {
    return times_missing(v, t);
  }
  return v;
}

// x / (1 + e^-gate), the same for every finite gate.
template <int n>
SGL_INLINE Many<n> exact_gate(const Many<n>& x, const Many<n>& gate) {
  const Many<n> tame = SGL_EACH(n, -at_most(at_least(gate.v[i], kLeft), -kLeft));
  const Many<n> power = exponential(tame);
  const Many<n> below = SGL_EACH(n, 1.0f + power.v[i]);
  const Many<n> factor = reciprocal<true>(below);
  const Many<n> v = SGL_EACH(n, x.v[i] * factor.v[i]);
  return with_left(v, gate);
}

// x / (1 + 2^t). Infinity for large t makes NaN of -inf, as torch does; NaN in x stays. From t = 126 on the result is
// 0, which in bf16 loses what is below 1.2e-36: telling those lanes apart cost 6 %.
template <class T, int n>
SGL_INLINE Many<n> quick_gate(const Many<n>& x, const Many<n>& t) {
  const Many<n> power = quick_power<T>(t);
  const Many<n> below = SGL_EACH(n, 1.0f + power.v[i]);
#if defined(__AVX512F__)
  const Many<n> factor = reciprocal<false>(below);
  return SGL_EACH(n, x.v[i] * factor.v[i]);
#else
  return SGL_EACH(n, x.v[i] / below.v[i]);
#endif
}

template <class T, int n>
SGL_INLINE Many<n> silu(const Many<n>& x) {
  if constexpr (!kHalf<T>) {
    return exact_gate(x, x);
  } else {
    const Many<n> t = SGL_EACH(n, x.v[i] * -kLog2E);
    return quick_gate<T>(x, t);
  }
}

// 0.5 x (1 + tanh u) is x sigmoid(2 u), without the cancellation; u = sqrt(2 / pi) (x + 0.044715 x^3).
template <class T, int n>
SGL_INLINE Many<n> gelu_tanh(const Many<n>& x) {
  constexpr float kTwice = 2 * 0.797884561f, factor = !kHalf<T> ? kTwice : -kLog2E * kTwice;
  const Many<n> square = SGL_EACH(n, x.v[i] * x.v[i]);
  const Many<n> slope = SGL_EACH(n, fma(square.v[i], splat(factor * 0.044715f), splat(factor)));
  const Many<n> gate = SGL_EACH(n, x.v[i] * slope.v[i]);
  if constexpr (!kHalf<T>) {
    return exact_gate(x, gate);
  } else {
    return quick_gate<T>(x, gate);
  }
}

// x times the normal distribution function. Its tail is e^(-x^2/2) times a polynomial in t = 1 / (1 + c |x|), so that
// nothing cancels for negative x: 10 terms to 4e-9, or 6 to 2e-5.
template <class T, int n>
SGL_INLINE Many<n> gelu_erf(const Many<n>& x) {
  constexpr float kExact[] = {-0.0206128266f, 0.112375759f,  -0.228067473f, 0.191581637f, -0.0792472884f,
                              0.096057795f,   0.0784255937f, 0.110227324f,  0.119572841f, 0.119686633f};
  constexpr float kQuick[] = {0.138808921f, -0.0016977234f, 0.0843755156f, 0.0970521346f, 0.0886550546f, 0.092816852f};
  const Many<n> size = SGL_EACH(n, x.v[i] < 0.0f ? -x.v[i] : x.v[i]);
  Many<n> t, p, bell;
  if constexpr (!kHalf<T>) {
    t = SGL_EACH(n, 1.0f / fma(size.v[i], splat(0.3f), splat(1.0f)));
    p = polynomial(kExact, t);
    const Many<n> power = SGL_EACH(n, at_least(x.v[i] * x.v[i] * -0.5f, -87.0f));
    bell = exponential(power);  // 0 beyond |x| = 13.19, where the product with x is below the normal numbers
    bell = SGL_EACH(n, power.v[i] > -87.0f ? bell.v[i] : F{});
  } else {
    const Many<n> below = SGL_EACH(n, at_most(fma(size.v[i], splat(0.2316419f), splat(1.0f)), 0x1p126f));
    t = reciprocal<false>(below);
    p = polynomial(kQuick, t);
    const Many<n> power = SGL_EACH(n, x.v[i] * x.v[i] * (-0.5f * kLog2E));
    bell = quick_power<T>(power);
  }
  const Many<n> tail = SGL_EACH(n, p.v[i] * t.v[i] * bell.v[i]);
  return SGL_EACH(n, x.v[i] * (x.v[i] < 0.0f ? tail.v[i] : 1.0f - tail.v[i]));
}

}  // namespace SGL_ISA
}  // namespace sgl_kernels
