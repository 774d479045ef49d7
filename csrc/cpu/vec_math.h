// Exponential, sigmoid, SiLU and GELU on the vectors of vec.h; knows no instruction set.
#pragma once

#include "vec.h"

namespace sgl_kernels {
namespace SGL_ISA {

// e^x for -87.3 <= x <= 88, so that result and scale are normal numbers; of NaN it makes anything. exact: a relative
// error of about 1e-7, else 3e-6, far under half a unit of fp16.
template <bool exact>
SGL_INLINE F exponential(F x) {
  const F magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds, and leaves the integer in the low bits
  const F rounded = fma(x, splat(1.44269504f), magic);
  const F n = rounded - magic;
  F r = fma(n, splat(-0.693359375f), x);  // ln 2 in two parts, the first exact in a product with n
  r = fma(n, splat(2.12194440e-4f), r);
  F p;
  if constexpr (exact) {
    p = fma(splat(1.383674214e-3f), r, splat(8.374898694e-3f));
    p = fma(p, r, splat(4.166823253e-2f));
    p = fma(p, r, splat(0.166664198f));
    p = fma(p, r, splat(0.4999999106f));
    p = fma(p, r, splat(1.0f));
    p = fma(p, r, splat(1.0f));
  } else {
    p = fma(splat(4.145819318e-2f), r, splat(0.1679115444f));
    p = fma(p, r, splat(0.5000437498f));
    p = fma(p, r, splat(0.9999632835f));
    p = fma(p, r, splat(0.9999992847f));
  }
  return (F)((U)p + ((U)rounded << 23));
}

// x / (1 + e^-gate): silu for gate = x. A factor of exactly 0 below -87.3 makes NaN of -inf, as torch does.
template <bool exact>
SGL_INLINE F times_sigmoid(F x, F gate) {
  F tame = gate < -87.0f ? splat(-87.0f) : gate;
  tame = tame > 87.0f ? splat(87.0f) : tame;
  const F factor = reciprocal<exact>(1.0f + exponential<exact>(-tame));
  return x * (gate < -87.3f ? F{} : factor);
}

template <bool exact>
SGL_INLINE F silu(F x) {
  return times_sigmoid<exact>(x, x);
}

// 0.5 x (1 + tanh u) is x sigmoid(2 u), without the cancellation; u = sqrt(2 / pi) (x + 0.044715 x^3).
template <bool exact>
SGL_INLINE F gelu_tanh(F x) {
  const F slope = fma(x * x, splat(2 * 0.797884561f * 0.044715f), splat(2 * 0.797884561f));
  return times_sigmoid<exact>(x, x * slope);
}

// x times the normal distribution function. Its tail is e^(-x^2/2) times a polynomial in t = 1 / (1 + 0.3 |x|),
// fitted to a relative error of 4e-9: no cancellation for negative x.
template <bool exact>
SGL_INLINE F gelu_erf(F x) {
  constexpr float kTail[] = {-0.0206128266f, 0.112375759f,  -0.228067473f, 0.191581637f, -0.0792472884f,
                             0.096057795f,   0.0784255937f, 0.110227324f,  0.119572841f, 0.119686633f};
  const F t = 1.0f / fma(x < 0.0f ? -x : x, splat(0.3f), splat(1.0f));
  F p = splat(kTail[0]);
#pragma GCC unroll 16
  for (int i = 1; i < 10; ++i) {
    p = fma(p, t, splat(kTail[i]));
  }
  const F power = -0.5f * x * x;
  const F bell = exponential<exact>(power < -87.0f ? splat(-87.0f) : power);
  const F tail = power < -87.0f ? F{} : p * t * bell;
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

}  // namespace SGL_ISA
}  // namespace sgl_kernels
