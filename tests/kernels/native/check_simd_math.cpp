// simd/bytes-inl.h, simd/exp-inl.h and simd/activation-inl.h. Bounds are those that the headers promise, and for fp32
// what rounding the exponent adds.
#include "check_simd.h"

namespace check {
namespace {

constexpr double kTiny = 0x1p-126;  // below it results may be zeros

// Relative bounds of the approximations for rows of T.
template <class T>
constexpr double kNear = sizeof(T) == 4 ? 4e-7
                         : kEvenOdd<T>  ? 1.4e-4
                                        : 7e-5;

double logistic(double t) { return 1 / (1 + std::exp(-t)); }

template <class T>
void activations_of() {
  const bool exact = sizeof(T) == 4;
  F x = random_bits() % 2 == 0 ? between(-12, 12) : some();
  for (int i = 0; i < kLanes; ++i) {
    if (!exact) x[i] = kEvenOdd<T> ? of_bf16(nearest_bf16(x[i])) : of_fp16(nearest_fp16(x[i]));
    if (x[i] == -INFINITY) x[i] = -30;  // NaN of torch's own; checked below
  }
  const Many<2> v = {{x, -x}};
  for (int r = 0; r < 2; ++r) {
    const F y = v.v[r];
    // A relative error of t in e^t is |t| units.
    const double lost = exact ? kTiny : 1.3e-36;
    const auto bound = [&](double t) { return kNear<T> + (exact ? 2.5e-7 : 1.2e-7) * std::fmin(std::fabs(t), 180); };
    for (int i = 0; i < kLanes; ++i) {
      const double e = y[i];
      if (e == -INFINITY) continue;
      near("silu", i, silu<T>(v).v[r][i], e * logistic(e), bound(e), lost);
      const double u = 2 * std::sqrt(2 / M_PI) * (e + 0.044715 * e * e * e);
      near("gelu_tanh", i, gelu_tanh<T>(v).v[r][i], e * logistic(u), bound(u), 16 * lost);
      const double normal = e == INFINITY ? e : e * 0.5 * std::erfc(-e / std::sqrt(2.0));
      near("gelu_erf", i, gelu_erf<T>(v).v[r][i], normal, bound(e * e / 2) + (exact ? 0 : 1.7e-4), 16 * lost);
    }
  }
  CHECK(float, "silu", silu<T>(Many<1>{{splat(-INFINITY)}}).v[0], NAN);
  const F t = between(-130, 130);
  for (int i = 0; i < kLanes; ++i) x[i] = std::fabs(x[i]) == INFINITY ? 1 : x[i];
  CHECK_NEAR("quick_gate", (quick_gate<T>(Many<1>{{x}}, Many<1>{{t}}).v[0]),
             t[i] >= 126 ? x[i] * 0.0 : x[i] / (1 + std::exp2(double{t[i]})), kEvenOdd<T> ? 1.4e-4 : 7e-5,
             std::fabs(x[i]) * 0x1p-125 + kTiny);
}

}  // namespace

void bytes() {
  const auto byte = [](const I* v, int i) { return v[i % 4][i / 4]; };
  const I u[4] = {small_numbers(0, 255), small_numbers(0, 255), small_numbers(0, 255), small_numbers(0, 255)};
  const I s[4] = {small_numbers(-128, 127), small_numbers(-128, 127), small_numbers(-128, 127),
                  small_numbers(-128, 127)};
  CHECK(uint8_t, "interleave_bytes", interleave_bytes<true>(u[0], u[1], u[2], u[3]), byte(u, i));
  CHECK(int8_t, "interleave_bytes", interleave_bytes<false>(s[0], s[1], s[2], s[3]), byte(s, i));
  CHECK(int8_t, "pack_words", pack_words(s[0], s[1], s[2], s[3]), s[i / 4 % 4][i / 16 * 4 + i % 4]);
  CHECK(int8_t, "join_words", join_words(s[0], s[1], s[2], s[3]), s[i / kLanes][i % kLanes]);
  int8_t to[kLanes + 2] = {77};
  to[kLanes + 1] = 77;
  store_low_bytes(to + 1, s[0]);
  for (int i = 0; i < kLanes; ++i) compare<int8_t>("store_low_bytes", i, to[i + 1], static_cast<int8_t>(s[0][i]));
  CHECK_ONE("store_low_bytes", to[0] + to[kLanes + 1], 154);

  const I sum = some_bits<I>() >> 4, a = some_bits<I>(), b = some_bits<I>();
  CHECK(int32_t, "dot_bytes", dot_bytes(sum, a, b), [&] {
    int32_t r = sum[i];
    for (int j = 0; j < 4; ++j) r += lane<uint8_t>(a, 4 * i + j) * lane<int8_t>(b, 4 * i + j);
    return r;
  }());
#if !defined(__AVX512F__)
  B first, second;
  for (int i = 0; i < 4 * kLanes; ++i) {
    first[i] = static_cast<int8_t>(random_bits() % (kUnsignedFirst ? 256 : 128));
    second[i] = static_cast<int8_t>(random_bits() % 25) - 12;
    if (!kUnsignedFirst && random_bits() % 2 == 0) first[i] = static_cast<int8_t>(-1 - first[i]);
  }
  const auto product = [&](int i) {
    return (kUnsignedFirst ? lane<uint8_t>(first, i) : lane<int8_t>(first, i)) * lane<int8_t>(second, i);
  };
  const Sums pairs = products(first, second);
  if constexpr (std::is_same_v<Sums, W>) CHECK(int16_t, "products", pairs, product(2 * i) + product(2 * i + 1));
  CHECK(int32_t, "quads", quads(pairs), product(4 * i) + product(4 * i + 1) + product(4 * i + 2) + product(4 * i + 3));
#endif
}

void powers() {
  const F t = between(-126, 127), wide = some();
  CHECK_NEAR("exp2", exp2<3>(t), std::exp2(double{t[i]}), 7.6e-5, kTiny);
  CHECK_NEAR("exp2", exp2<5>(t), std::exp2(double{t[i]}), 2.5e-7, kTiny);
  CHECK_NEAR("exp2_near", exp2_near(t), std::exp2(double{t[i]}), 7.6e-5, kTiny);
  for (const F x : {min(splat(127.0f), wide), splat(-INFINITY), splat(-127.5f), splat(-1e30f)}) {  // NaN stays NaN
    CHECK_NEAR("exp2", exp2<5>(x), std::exp2(double{x[i]}), 2.5e-7, kTiny);
    if (!any(x != x)) CHECK_NEAR("exp2_near", exp2_near(x), std::exp2(double{x[i]}), 7.6e-5, kTiny);
  }
  const auto quick = [&]<class T>(T, double relative) {
    for (const F x : {t, splat(-INFINITY), splat(INFINITY), splat(130.0f), splat(-130.0f)}) {
      const bool past = kLanes < 16;  // infinity from 126 on
      CHECK_NEAR("quick_power", (quick_power<T>(Many<1>{{x}}).v[0]),
                 past && x[i] >= 126 ? INFINITY : std::exp2(double{x[i]}), relative, 1.1 * kTiny);
    }
  };
  quick(Fp16{}, 4.2e-6);
  quick(Bf16{}, kLanes == 16 ? 7.6e-5 : 4.2e-6);
  const F x = between(-87.3f, 88);
  CHECK_NEAR("exponential", exponential(Many<1>{{x}}).v[0], std::exp(double{x[i]}), 2e-7, 0);

  const F s = random_bits() % 2 == 0 ? wide : between(-1, 1);
  CHECK_NEAR("tanh", tanh(s), std::tanh(double{s[i]}), 5e-7, 0);
  F v = between(1, 2);
  for (int i = 0; i < kLanes; ++i) v[i] = std::ldexp(v[i], static_cast<int>(random_bits() % 125));
  CHECK_NEAR("reciprocal", reciprocal<true>(Many<1>{{v}}).v[0], 1 / double{v[i]}, 1.8e-7, 0);
  CHECK_NEAR("reciprocal", reciprocal<false>(Many<1>{{v}}).v[0], 1 / double{v[i]}, 0x1p-14, 0);
  constexpr float kTerms[] = {3.0f, -2.0f, 0.5f, 7.0f};
  const F w = __builtin_convertvector(small_numbers(-30, 30), F);
  const auto at = [](double e) { return ((3 * e - 2) * e + 0.5) * e + 7; };
  CHECK(float, "polynomial", polynomial(kTerms, Many<1>{{w}}).v[0], at(w[i]));
  const Many<3> made = each<3>([&](int i) { return splat(static_cast<float>(i)) + w; });
  for (int r = 0; r < 3; ++r) CHECK(float, "each", made.v[r], w[i] + r);
}

void activations() {
  activations_of<float>();
  activations_of<Bf16>();
  activations_of<Fp16>();
  const F x = between(-3, 3), gate = random_bits() % 2 == 0 ? between(-170, 200) : between(-5, 5);
  CHECK_NEAR("exact_gate", (exact_gate(Many<1>{{x}}, Many<1>{{gate}}).v[0]), x[i] * logistic(gate[i]), 6e-7, kTiny);
  const auto left = [&](int i) { return gate[i] < kLeft ? x[i] * std::exp(double{gate[i]} - double{kLeft}) : x[i]; };
  CHECK_NEAR("with_left", (with_left(Many<1>{{x}}, Many<1>{{gate}}).v[0]), left(i), 4e-7, kTiny);
  CHECK_NEAR("times_missing", (times_missing(Many<1>{{x}}, Many<1>{{gate}}).v[0]), left(i), 4e-7, kTiny);
}

}  // namespace check
