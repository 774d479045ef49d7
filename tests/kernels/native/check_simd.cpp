// simd/lanes-inl.h, simd/memory-inl.h and simd/transpose-inl.h; the other parts are in the files beside it.
#include "check_simd.h"

namespace check {

void lanes() {
  const F a = some(), b = some(), c = some();
  const I m = some_bits<I>(), n = some_bits<I>();
  const float x = any_float();
  const auto k = static_cast<int32_t>(random_bits());
  CHECK(uint32_t, "splat", splat(x), word(x));
  CHECK(uint32_t, "splat", splat(number(0x7f812345u)), 0x7f812345u);
  CHECK(int32_t, "splat_int", splat_int(k), k);
  char bytes[7];
  std::memcpy(bytes + 3, &k, 4);
  CHECK(int32_t, "splat_word", splat_word(bytes + 3), k);
  CHECK(int32_t, "lane_index", lane_index(), i);
  CHECK(uint32_t, "bits", bits(a), word(a[i]));
  CHECK(uint32_t, "as_float", as_float(m), m[i]);
  CHECK(uint32_t, "as_float", as_float((U)m), m[i]);
  CHECK_ONE("as_float", word(as_float(k)), k);
  CHECK(uint32_t, "magnitude", magnitude(a), word(a[i]) & 0x7fffffff);

  CHECK(uint32_t, "rounded", rounded(a), word(a[i]));
  CHECK_ONE("rounded", word(rounded(x)), word(x));
  const F apart = rounded(a * b) + c;
  CHECK(float, "rounded", apart, [&] {
    volatile float product = a[i] * b[i];
    return product + c[i];
  }());
#if defined(__FMA__) || defined(__aarch64__)
  CHECK(float, "fma", fma(a, b, c), std::fma(a[i], b[i], c[i]));
#else
  CHECK(float, "fma", fma(a, b, c), a[i] * b[i] + c[i]);
#endif
  CHECK(uint32_t, "max", max(a, b), word(a[i] > b[i] ? a[i] : b[i]));
  CHECK(uint32_t, "min", min(a, b), word(a[i] < b[i] ? a[i] : b[i]));
  CHECK(float, "at_least", at_least(a, 1.5f), a[i] < 1.5f ? 1.5f : a[i]);
  CHECK(float, "at_most", at_most(a, -2.5f), a[i] > -2.5f ? -2.5f : a[i]);
  CHECK(int32_t, "larger", larger(m, n), m[i] > n[i] ? m[i] : n[i]);
  CHECK(float, "square_root", square_root(a), std::sqrt(a[i]));
  CHECK_ONE("square_root", square_root(x * x), std::sqrt(x * x));
  const F whole = between(-0x1p22f, 0x1p22f), halves = __builtin_convertvector(small_numbers(-999, 999), F) * 0.5f;
  CHECK(int32_t, "nearest", nearest(whole), std::nearbyint(whole[i]));
  CHECK(int32_t, "nearest", nearest(halves), std::nearbyint(halves[i]));
  CHECK(uint32_t, "quiet", quiet(a), a[i] == a[i] ? word(a[i]) : 0x7fc00000u);
  CHECK(uint32_t, "quiet", quiet(as_float(m | 0x7f800001)), 0x7fc00000u);

  I mask = {};
  CHECK_ONE("any", any(mask), false);
  const int at = static_cast<int>(random_bits() % kLanes);
  mask[at] = static_cast<int32_t>(1u << random_bits() % 32);
  CHECK_ONE("any", any(mask), true);
  bool below = false;
  for (int i = 0; i < kLanes; ++i) below |= a[i] < b[i];
  CHECK_ONE("any_below", any_below(a, b), below);
  F one = F{};
  CHECK_ONE("any_below", any_below(one, F{}), false);
  one[at] = -0x1p-126f;
  CHECK_ONE("any_below", any_below(one, F{}), true);

  float half[kLanes], in_order = 0;
  for (int i = 0; i < kLanes; ++i) {
    half[i] = a[i];
    in_order += a[i];
  }
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) half[i] += half[i + width];
  }
  CHECK_ONE("sum", sum(a), half[0]);
  CHECK_ONE("sum_in_order", sum_in_order(a), kLanes == 16 ? half[0] : in_order);
  float most = a[0];
  int32_t largest = m[0];
  for (int i = 1; i < kLanes; ++i) {
    most = most > a[i] ? most : a[i];
    largest = largest > m[i] ? largest : m[i];
  }
  CHECK_ONE("max_lanes", max_lanes(a), most);
  CHECK_ONE("max_lanes", max_lanes(m), largest);
}

void memory() {
  const U a = some_bits<U>();
  const H h = some_bits<H>();
  alignas(64) unsigned char to[192];
  std::memcpy(to, &a, sizeof a);
  CHECK(unsigned char, "load", load<U>(to + 5), to[i + 5]);
  CHECK(unsigned char, "load", load<H>(to + 1), to[i + 1]);
  const int bytes = 4 * kLanes;
  auto stored = [&](const char* name, int begin, int end, auto store_it) {
    std::memset(to, 0x5a, sizeof to);
    store_it();
    for (int i = 0; i < 192; ++i) {
      const bool inside = i >= 64 + begin && i < 64 + end;
      compare<unsigned char>(name, i, to[i], inside ? lane<unsigned char>(a, i - 64 - begin) : 0x5a);
    }
  };
  stored("store", 3, 3 + bytes, [&] { store(to + 67, a); });
  stored("stream", 0, bytes, [&] {
    stream(to + 64, a);
    finish_streaming();
  });
  seen.insert("finish_streaming");
  for (int n = 0; n <= kLanes; ++n) {
    stored("store_some", 3, 3 + 4 * n, [&] { store_some(to + 67, a, n); });
    char* p = edge() - 4 * n;
    store_some(p, a, n);
    CHECK(uint32_t, "load_some", load_some<U>(p, n), i < n ? a[i] : 0);
    CHECK(uint32_t, "load_some", load_some<F>(p, n), i < n ? a[i] : 0);
    p = edge() - 2 * n;
    store_some(p, h, n);
    CHECK(uint16_t, "load_some", load_some<H>(p, n), i < n ? h[i] : 0);
  }
  for (int n = 0; n <= bytes; ++n) {
    stored("store_bytes", 3, 3 + n, [&] { store_bytes(reinterpret_cast<char*>(to) + 67, as_float(a), n); });
    store_bytes(edge() - n, as_float(a), n);
  }
}

void squares() {
  F rows[kLanes];
  I numbers[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    rows[i] = as_float(some_bits<I>());
    numbers[i] = some_bits<I>();
  }
  F turned[kLanes];
  std::memcpy(turned, rows, sizeof rows);
  transpose(turned);
  for (int j = 0; j < kLanes; ++j) CHECK(uint32_t, "transpose", turned[j], lane<uint32_t>(rows[i], j));
#if defined(__x86_64__)  // the narrower squares, where a level has them
  typedef float Four __attribute__((vector_size(16)));
  Four four[4], before[4];
  for (Four& row : four) row = any_bits<Four>();
  std::memcpy(before, four, sizeof four);
  transpose(four);
  for (int j = 0; j < 4; ++j) CHECK(uint32_t, "transpose", four[j], lane<uint32_t>(before[i], j));
#endif

  // Sums of whole numbers are exact in any order, and those of others near.
  F exact[kLanes], near_sums[kLanes], kept[kLanes];
  double sums[kLanes], sizes = 0;
  for (int i = 0; i < kLanes; ++i) {
    exact[i] = __builtin_convertvector(small_numbers(-1000, 1000), F);
    kept[i] = near_sums[i] = between(-2, 2);
    sums[i] = 0;
    for (int j = 0; j < kLanes; ++j) sums[i] += exact[i][j];
  }
  CHECK(float, "sum_each", sum_each(exact), sums[i]);
  for (int i = 0; i < kLanes; ++i) {
    sums[i] = 0;
    for (int j = 0; j < kLanes; ++j) sums[i] += kept[i][j];
    sizes = 2 * kLanes;
  }
  CHECK_NEAR("sum_each", sum_each(near_sums), sums[i], 0, sizes * 1e-6);

  int32_t most[kLanes];
  uint32_t total[kLanes];
  I copy[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    most[i] = numbers[i][0];
    total[i] = 0;
    copy[i] = numbers[i];
    for (int j = 0; j < kLanes; ++j) {
      most[i] = most[i] > numbers[i][j] ? most[i] : numbers[i][j];
      total[i] += static_cast<uint32_t>(numbers[i][j]);
    }
  }
  CHECK(int32_t, "combine_rows", combine_rows(numbers, [](I a, I b) { return larger(a, b); }), most[i]);
  CHECK(uint32_t, "combine_rows", combine_rows(copy, [](I a, I b) { return (I)((U)a + (U)b); }), total[i]);

  I quads[kQuads], moved[kQuads];
  for (int i = 0; i < kQuads; ++i) moved[i] = quads[i] = some_bits<I>();
  transpose_quads(moved);
  for (int j = 0; j < kQuads; ++j) CHECK(int32_t, "transpose_quads", moved[j], quads[i / 4][j * 4 + i % 4]);
}

}  // namespace check

int main() {
  check::every_half();
  for (int round = 0; round < 400; ++round) {
    check::lanes();
    check::squares();
    check::conversion();
    check::blocks();
    check::bytes();
    check::powers();
    check::activations();
  }
  for (int round = 0; round < 20; ++round) check::memory();
  std::printf("%zu functions of simd/, %ld comparisons with scalar definitions, %zu wrong\n", check::seen.size(),
              check::comparisons, check::wrong.size());
  return check::wrong.empty() ? 0 : 1;
}
