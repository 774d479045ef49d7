// Exponential, sigmoid, SiLU and GELU on the vectors of vec.h.
//
// "exact" is for rows of fp32. Rows of 16 bits take polynomials with a relative error under 7e-5, where half a unit of
// fp16 is 2.4e-4 to 4.9e-4 and of bf16 eight times that.
#pragma once

#include "vec.h"

namespace sgl_kernels {
namespace SGL_ISA {

constexpr float kLog2E = 1.44269504f;

// p * 2^n for p near 1 and a normal result.
SGL_INLINE F times_power(F p, F whole) { return (F)((U)p + ((U)whole << 23)); }

// e^x for -87.3 <= x <= 88, so that result and scale are normal numbers; of NaN it makes anything.
SGL_INLINE F exponential(F x) {
  const F magic = splat(12582912.0f);
  const F whole = fma(x, splat(kLog2E), magic);
  const F n = whole - magic;
  F r = fma(n, splat(-0.693359375f), x);  // ln 2 in two parts, the first exact in a product with n
  r = fma(n, splat(2.12194440e-4f), r);
  F p = fma(splat(1.383674214e-3f), r, splat(8.374898694e-3f));
  p = fma(p, r, splat(4.166823253e-2f));
  p = fma(p, r, splat(0.166664198f));
  p = fma(p, r, splat(0.4999999106f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  return times_power(p, whole);
}

// x / (1 + 2^t). Infinity for large t makes NaN of -inf, as torch does; NaN in x stays.
SGL_INLINE F quick_gate(F x, F t) {
#if defined(__AVX512F__)
  return x * reciprocal<false>(1.0f + quick_power(t));
#else
  return x / (1.0f + quick_power(t));
#endif
}

// x / (1 + e^-gate), with the same zero.
SGL_INLINE F exact_gate(F x, F gate) {
  const F tame = at_most(at_least(gate, -87.0f), 87.0f);
  const F factor = reciprocal<true>(1.0f + exponential(-tame));
  return x * (gate < -87.3f ? F{} : factor);
}

template <bool exact>
SGL_INLINE F silu(F x) {
  if constexpr (exact) {
    return exact_gate(x, x);
  } else {
    return quick_gate(x, x * -kLog2E);
  }
}

// 0.5 x (1 + tanh u) is x sigmoid(2 u), without the cancellation; u = sqrt(2 / pi) (x + 0.044715 x^3).
template <bool exact>
SGL_INLINE F gelu_tanh(F x) {
  constexpr float kTwice = 2 * 0.797884561f;
  if constexpr (exact) {
    return exact_gate(x, x * fma(x * x, splat(kTwice * 0.044715f), splat(kTwice)));
  } else {
    return quick_gate(x, x * fma(x * x, splat(-kLog2E * kTwice * 0.044715f), splat(-kLog2E * kTwice)));
  }
}

// x times the normal distribution function. Its tail is e^(-x^2/2) times a polynomial in t = 1 / (1 + c |x|), so that
// nothing cancels for negative x: 10 terms to 4e-9, or 6 to 2e-5.
template <bool exact>
SGL_INLINE F gelu_erf(F x) {
  constexpr float kExact[] = {-0.0206128266f, 0.112375759f,  -0.228067473f, 0.191581637f, -0.0792472884f,
                              0.096057795f,   0.0784255937f, 0.110227324f,  0.119572841f, 0.119686633f};
  constexpr float kQuick[] = {0.138808921f, -0.0016977234f, 0.0843755156f, 0.0970521346f, 0.0886550546f,
                              0.092816852f};
  constexpr int terms = exact ? 10 : 6;
  const F size = x < 0.0f ? -x : x;
  const F t = exact ? 1.0f / fma(size, splat(0.3f), splat(1.0f))
                    : reciprocal<false>(at_most(fma(size, splat(0.2316419f), splat(1.0f)), 0x1p126f));
  F p = splat(exact ? kExact[0] : kQuick[0]);
#pragma GCC unroll 16
  for (int i = 1; i < terms; ++i) {
    p = fma(p, t, splat(exact ? kExact[i] : kQuick[i]));
  }
  F bell;
  if constexpr (exact) {
    const F power = at_least(x * x * -0.5f, -87.0f);
    bell = exponential(power);
    bell = power > -87.0f ? bell : F{};
  } else {
    bell = quick_power(x * x * (-0.5f * kLog2E));
  }
  const F tail = p * t * bell;
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

}  // namespace SGL_ISA
}  // namespace sgl_kernels
