// The emulation's float intrinsics against scalar definitions.
#include "check_emulated.h"

namespace check {
namespace {

int32_t to_int(double whole) {  // what the processor answers beyond int32
  return whole >= -2147483648.0 && whole < 2147483648.0 ? static_cast<int32_t>(whole) : INT32_MIN;
}
double nearest(double x) { return std::nearbyint(x); }

float minimum(float a, float b) { return a < b ? a : b; }
float maximum(float a, float b) { return a > b ? a : b; }

}  // namespace

void floats() {
  const __m512 a = any_floats<__m512>(), b = any_floats<__m512>(), c = any_floats<__m512>();
  const auto k = static_cast<__mmask16>(random_bits());
  auto A = [&](int i) { return lane<float>(a, i); };
  auto B = [&](int i) { return lane<float>(b, i); };
  auto C = [&](int i) { return lane<float>(c, i); };
  auto on = [&](int i) { return (k >> i & 1) != 0; };
  CHECK(float, "add_ps", _mm512_add_ps(a, b), A(i) + B(i));
  CHECK(float, "sub_ps", _mm512_sub_ps(a, b), A(i) - B(i));
  CHECK(float, "mul_ps", _mm512_mul_ps(a, b), A(i) * B(i));
  CHECK(float, "div_ps", _mm512_div_ps(a, b), A(i) / B(i));
  CHECK(float, "max_ps", _mm512_max_ps(a, b), maximum(A(i), B(i)));  // the second where either is NaN
  CHECK(float, "min_ps", _mm512_min_ps(a, b), minimum(A(i), B(i)));
  CHECK(float, "fmadd_ps", _mm512_fmadd_ps(a, b, c), std::fma(A(i), B(i), C(i)));
  CHECK(float, "mask_mul_ps", _mm512_mask_mul_ps(c, k, a, b), on(i) ? A(i) * B(i) : C(i));
  CHECK(float, "maskz_mul_ps", _mm512_maskz_mul_ps(k, a, b), on(i) ? A(i) * B(i) : 0.0f);
  CHECK(float, "mask_max_ps", _mm512_mask_max_ps(c, k, a, b), on(i) ? maximum(A(i), B(i)) : C(i));
  CHECK(float, "mask_mov_ps", _mm512_mask_mov_ps(c, k, a), on(i) ? A(i) : C(i));

  auto rest = [](float x, double whole, float zero) {
    if (std::isinf(x)) return 0.0f;
    const float r = static_cast<float>(x - whole);
    return r == 0 ? zero : r;
  };
  CHECK(float, "reduce_ps nearest", _mm512_reduce_ps(a, 0), rest(A(i), nearest(A(i)), 0.0f));
  CHECK(float, "reduce_ps down", _mm512_reduce_ps(a, _MM_FROUND_TO_NEG_INF), rest(A(i), std::floor(A(i)), -0.0f));
  auto scaled = [](float x, float y) {
    if (x != x || y != y) return NAN;
    if (std::isinf(y) && (y > 0 ? x == 0 : std::isinf(x))) return NAN;
    if (std::isinf(y)) return std::copysign(y > 0 ? INFINITY : 0.0f, x);
    const double whole = std::fmax(-900.0, std::fmin(900.0, std::floor(static_cast<double>(y))));
    return static_cast<float>(std::ldexp(static_cast<double>(x), static_cast<int>(whole)));
  };
  CHECK(float, "scalef_ps", _mm512_scalef_ps(a, b), scaled(A(i), B(i)));
  CHECK(float, "sqrt_ps", _mm512_sqrt_ps(a), std::sqrt(A(i)));
  const __m512 rough = _mm512_rcp14_ps(a);
  for (int i = 0; i < 16; ++i) {
    const double exact = 1.0 / A(i), got = lane<float>(rough, i);
    const bool normal = std::isfinite(exact) && std::fabs(exact) >= 0x1p-126 && std::fabs(exact) <= 3.4e38;
    if (normal) compare("rcp14_ps", i, std::fabs(got - exact) < 0x1p-14 * std::fabs(exact), true);
  }
  auto smaller = [](float x, float y) {
    const float r = x != x ? y : y != y ? x : std::fabs(x) <= std::fabs(y) ? x : y;
    return std::copysign(std::fabs(r), x);
  };
  CHECK(float, "range_ps", _mm512_range_ps(a, b, 2), smaller(A(i), B(i)));

  float most = -INFINITY, finite[16];
  double sum = 0, size = 0;
  for (int i = 0; i < 16; ++i) {
    finite[i] = std::isfinite(A(i)) && std::fabs(A(i)) < 1e30f ? A(i) : 1.0f;
    most = maximum(most, finite[i]);
    sum += finite[i];
    size += std::fabs(finite[i]);
  }
  CHECK_ONE("reduce_max_ps", _mm512_reduce_max_ps(_mm512_loadu_ps(finite)), most);
  compare("reduce_add_ps", 0, std::fabs(_mm512_reduce_add_ps(_mm512_loadu_ps(finite)) - sum) <= 3e-7 * size, true);

  auto mask = [](auto condition) {
    unsigned m = 0;
    for (int i = 0; i < 16; ++i) m += condition(i) ? 1u << i : 0u;
    return m;
  };
  const bool even = random_bits() % 2 == 0;
  const __m512 other = even ? b : a;  // equal values, NaN among them, are rare between a and b
  auto O = [&](int i) { return lane<float>(other, i); };
#define CHECK_PREDICATE(predicate, holds) \
  CHECK_ONE(#predicate, _mm512_cmp_ps_mask(a, other, predicate), mask([&](int i) { return holds; }))
  CHECK_PREDICATE(_CMP_LT_OQ, std::isless(A(i), O(i)));
  CHECK_PREDICATE(_CMP_LE_OQ, std::islessequal(A(i), O(i)));
  CHECK_PREDICATE(_CMP_GT_OQ, std::isgreater(A(i), O(i)));
  CHECK_PREDICATE(_CMP_GE_OQ, std::isgreaterequal(A(i), O(i)));
  CHECK_PREDICATE(_CMP_EQ_OQ, !std::isunordered(A(i), O(i)) && A(i) == O(i));
  CHECK_PREDICATE(_CMP_NEQ_UQ, std::isunordered(A(i), O(i)) || A(i) != O(i));
  CHECK_PREDICATE(_CMP_UNORD_Q, std::isnan(A(i)) || std::isnan(O(i)));
  CHECK_PREDICATE(_CMP_ORD_Q, !std::isnan(A(i)) && !std::isnan(O(i)));

  const __m512i n = any_bits<__m512i>();
  CHECK(float, "cvtepi32_ps", _mm512_cvtepi32_ps(n), lane<int32_t>(n, i));
  CHECK(int32_t, "cvtps_epi32", _mm512_cvtps_epi32(a), to_int(nearest(A(i))));
  constexpr int down = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC, up = _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC;
  CHECK(int32_t, "cvt_roundps_epi32 down", _mm512_cvt_roundps_epi32(a, down), to_int(std::floor(A(i))));
  CHECK(int32_t, "cvt_roundps_epi32 up", _mm512_cvt_roundps_epi32(a, up), to_int(std::ceil(A(i))));
  const __m256i h = _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT);
  for (int i = 0; i < 16; ++i) {  // _Float16 is the compiler's own conversion
    _Float16 want = static_cast<_Float16>(A(i));
    if (!std::isnan(A(i))) compare("cvtps_ph", i, lane<uint16_t>(h, i), std::bit_cast<uint16_t>(want));
  }
  const __m256i raw = any_bits<__m256i>();
  CHECK(float, "cvtph_ps", _mm512_cvtph_ps(raw), static_cast<float>(std::bit_cast<_Float16>(lane<uint16_t>(raw, i))));
}

}  // namespace check
