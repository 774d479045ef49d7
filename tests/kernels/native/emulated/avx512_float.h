// Arithmetic on 16 floats, and their conversions.
#pragma once

#include "avx512_basic.h"

namespace emulated {

SGL_EMULATED float from_bits(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
SGL_EMULATED uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}
constexpr uint32_t kSign = 0x80000000u;

// x rounded to a whole number; direction as in an instruction's immediate: 0 nearest even, 1 down, 2 up, 3 to zero.
SGL_EMULATED float rounded(float x, int direction) {
  switch (direction & 7) {
    case 0:
      return __builtin_rintf(x);  // the tests leave the rounding mode at nearest even
    case 1:
      return __builtin_floorf(x);
    case 2:
      return __builtin_ceilf(x);
    case 3:
      return __builtin_truncf(x);
    default:
      return __builtin_rintf(x);
  }
}

// vreduceps without fraction bits: x - rounded(x), +0 (-0 when rounding down) where nothing is left.
SGL_EMULATED float reduced(float x, int imm) {
  if ((imm >> 4) != 0) __builtin_trap();  // no source keeps fraction bits
  if (x != x) return x;
  if (__builtin_isinf(x)) return 0.0f;
  const float rest = x - rounded(x, imm);
  return rest == 0 ? ((imm & 7) == 1 ? -0.0f : 0.0f) : rest;
}

// vscalefps: a 2^floor(b), rounded once.
SGL_EMULATED float scaled(float a, float b) {
  if (a != a || b != b) return __builtin_nanf("");
  const float infinity = __builtin_inff();
  if (b == infinity) return a == 0 ? __builtin_nanf("") : __builtin_copysignf(infinity, a);
  if (b == -infinity) return __builtin_isinf(a) ? __builtin_nanf("") : __builtin_copysignf(0.0f, a);
  const float whole = __builtin_floorf(b);
  const int64_t n = whole > 600 ? 600 : whole < -600 ? -600 : static_cast<int64_t>(whole);
  const uint64_t bits = static_cast<uint64_t>(1023 + n) << 52;
  double power;
  __builtin_memcpy(&power, &bits, 8);
  return static_cast<float>(a * power);  // exact in double
}

// vrcp14ps within its promise of 2^-14, and no better: the reciprocal cut to 14 bits.
SGL_EMULATED float rough_reciprocal(float x) {
  if (x == 0) return __builtin_copysignf(__builtin_inff(), x);
  const float exact = 1.0f / x;
  return exact != exact || __builtin_isinf(exact) ? exact : from_bits(bits_of(exact) & ~0x1ffu);
}

// vrangeps with sign control 0 (the sign of a): which of a and b, by the two low bits of imm.
SGL_EMULATED float ranged(float a, float b, int imm) {
  if ((imm & ~3) != 0) __builtin_trap();
  float r;
  if (a != a) {
    r = b;
  } else if (b != b) {
    r = a;
  } else if ((imm & 2) != 0) {
    const float x = __builtin_fabsf(a), y = __builtin_fabsf(b);
    r = (imm & 1) != 0 ? (x > y ? a : b) : (x <= y ? a : b);
  } else {
    r = (imm & 1) != 0 ? (a > b ? a : b) : (a <= b ? a : b);
  }
  return from_bits((bits_of(r) & ~kSign) | (bits_of(a) & kSign));
}

template <class Fn>
SGL_EMULATED __m512 each_float(__m512 a, Fn fn) {
  const auto x = lanes_of<float>(a);
  return by_lanes<float, __m512>([&](unsigned i) { return fn(x.at[i]); });
}

template <class Fn>
SGL_EMULATED __mmask16 mask_of(Fn fn) {
  unsigned mask = 0;
  for (unsigned i = 0; i < 16; ++i) mask |= static_cast<unsigned>(fn(i) ? 1 : 0) << i;
  return static_cast<__mmask16>(mask);
}

}  // namespace emulated

#define SGL_EMULATED_PAIR(name)                                                                      \
  SGL_EMULATED __m512 _mm512_##name(__m512 a, __m512 b) {                                            \
    return emulated::by_parts<__m256>(a, b, [](__m256 x, __m256 y) { return _mm256_##name(x, y); }); \
  }
SGL_EMULATED_PAIR(add_ps)
SGL_EMULATED_PAIR(sub_ps)
SGL_EMULATED_PAIR(mul_ps)
SGL_EMULATED_PAIR(div_ps)
SGL_EMULATED_PAIR(max_ps)
SGL_EMULATED_PAIR(min_ps)
#undef SGL_EMULATED_PAIR

SGL_EMULATED __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  __m256 x[2], y[2], z[2];
  __builtin_memcpy(x, &a, sizeof a);
  __builtin_memcpy(y, &b, sizeof b);
  __builtin_memcpy(z, &c, sizeof c);
  z[0] = _mm256_fmadd_ps(x[0], y[0], z[0]);
  z[1] = _mm256_fmadd_ps(x[1], y[1], z[1]);
  __builtin_memcpy(&c, z, sizeof c);
  return c;
}

SGL_EMULATED __m512 _mm512_mask_mul_ps(__m512 other, __mmask16 k, __m512 a, __m512 b) {
  return emulated::choose<uint32_t>(k, _mm512_mul_ps(a, b), other);
}
SGL_EMULATED __m512 _mm512_maskz_mul_ps(__mmask16 k, __m512 a, __m512 b) {
  return _mm512_mask_mul_ps(__m512{}, k, a, b);
}
SGL_EMULATED __m512 _mm512_mask_mov_ps(__m512 other, __mmask16 k, __m512 a) {
  return emulated::choose<uint32_t>(k, a, other);
}

SGL_EMULATED __m512 _mm512_mask_max_ps(__m512 other, __mmask16 k, __m512 a, __m512 b) {
  return emulated::choose<uint32_t>(k, _mm512_max_ps(a, b), other);
}

SGL_EMULATED __m512 _mm512_reduce_ps(__m512 a, int imm) {
  return emulated::each_float(a, [=](float x) { return emulated::reduced(x, imm); });
}
SGL_EMULATED __m512 _mm512_scalef_ps(__m512 a, __m512 b) {
  const auto x = emulated::lanes_of<float>(a), y = emulated::lanes_of<float>(b);
  return emulated::by_lanes<float, __m512>([&](unsigned i) { return emulated::scaled(x.at[i], y.at[i]); });
}
SGL_EMULATED __m512 _mm512_sqrt_ps(__m512 a) {
  return emulated::each_float(a, [](float x) { return __builtin_sqrtf(x); });
}
SGL_EMULATED __m512 _mm512_rcp14_ps(__m512 a) {
  return emulated::each_float(a, [](float x) { return emulated::rough_reciprocal(x); });
}
SGL_EMULATED __m512 _mm512_range_ps(__m512 a, __m512 b, int imm) {
  const auto x = emulated::lanes_of<float>(a), y = emulated::lanes_of<float>(b);
  return emulated::by_lanes<float, __m512>([&](unsigned i) { return emulated::ranged(x.at[i], y.at[i], imm); });
}

// The order of gcc's header: halves, then quarters.
SGL_EMULATED float _mm512_reduce_add_ps(__m512 a) {
  const auto x = emulated::lanes_of<float>(a);
  float sum[8];
  for (int i = 0; i < 8; ++i) sum[i] = x.at[i] + x.at[i + 8];
  for (int i = 0; i < 4; ++i) sum[i] += sum[i + 4];
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}
SGL_EMULATED float _mm512_reduce_max_ps(__m512 a) {
  const auto x = emulated::lanes_of<float>(a);
  float most = x.at[0];
  for (int i = 1; i < 16; ++i) most = most > x.at[i] ? most : x.at[i];
  return most;
}

SGL_EMULATED __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int predicate) {
  const auto x = emulated::lanes_of<float>(a), y = emulated::lanes_of<float>(b);
  return emulated::mask_of([&](unsigned i) {
    const bool unordered = x.at[i] != x.at[i] || y.at[i] != y.at[i];
    switch (predicate) {
      case _CMP_EQ_OQ:
        return x.at[i] == y.at[i];
      case _CMP_LT_OQ:
        return x.at[i] < y.at[i];
      case _CMP_LE_OQ:
        return x.at[i] <= y.at[i];
      case _CMP_GT_OQ:
        return x.at[i] > y.at[i];
      case _CMP_GE_OQ:
        return x.at[i] >= y.at[i];
      case _CMP_NEQ_UQ:
        return x.at[i] != y.at[i];
      case _CMP_UNORD_Q:
        return unordered;
      case _CMP_ORD_Q:
        return !unordered;
      default:
        __builtin_trap();
    }
  });
}

// ---- conversions ------------------------------------------------------------------------------------------------

SGL_EMULATED __m512 _mm512_cvtepi32_ps(__m512i a) {
  const auto x = emulated::lanes_of<int32_t>(a);
  return emulated::by_lanes<float, __m512>([&](unsigned i) { return static_cast<float>(x.at[i]); });
}
SGL_EMULATED __m512i _mm512_cvtps_epi32(__m512 a) {
  __m256 x[2];
  __builtin_memcpy(x, &a, sizeof a);
  const __m256i y[2] = {_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1])};
  return emulated::load<__m512i>(y);
}
SGL_EMULATED __m512i _mm512_cvt_roundps_epi32(__m512 a, int rounding) {
  if ((rounding & _MM_FROUND_NO_EXC) == 0) __builtin_trap();  // static rounding also silences exceptions
  return _mm512_cvtps_epi32(emulated::each_float(a, [=](float x) { return emulated::rounded(x, rounding & 3); }));
}
SGL_EMULATED __m512 _mm512_cvtph_ps(__m256i a) {
  __m128i x[2];
  __builtin_memcpy(x, &a, sizeof a);
  const __m256 y[2] = {_mm256_cvtph_ps(x[0]), _mm256_cvtph_ps(x[1])};
  return emulated::load<__m512>(y);
}
SGL_EMULATED __m256i _mm512_cvtps_ph(__m512 a, int rounding) {
  if ((rounding & 7) != _MM_FROUND_TO_NEAREST_INT) __builtin_trap();
  __m256 x[2];
  __builtin_memcpy(x, &a, sizeof a);
  const __m128i y[2] = {_mm256_cvtps_ph(x[0], _MM_FROUND_TO_NEAREST_INT),
                        _mm256_cvtps_ph(x[1], _MM_FROUND_TO_NEAREST_INT)};
  return emulated::load<__m256i>(y);
}
