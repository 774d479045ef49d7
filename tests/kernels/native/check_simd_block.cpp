// simd/convert-inl.h and simd/block-inl.h.
#include "check_simd.h"

namespace check {
namespace {

template <class T>
float value_of(const T& x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else if constexpr (kEvenOdd<T>) {
    return of_bf16(x.bits);
  } else {
    return of_fp16(x.bits);
  }
}

// What is written of x, as a number.
template <class T>
float stored_value(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else if constexpr (kEvenOdd<T>) {
    return of_bf16(stored_bf16(x));
  } else {
    return of_fp16(nearest_fp16(x));
  }
}

template <class T>
T any_element() {
  if constexpr (sizeof(T) == 4) {
    return any_float();
  } else if constexpr (kEvenOdd<T>) {
    return {nearest_bf16(any_float())};
  } else {
    return {nearest_fp16(any_float())};
  }
}

// Element i of a block in the block order of T, which is said here once more: evens and odds, or halves.
template <class T>
float element(const Pair& v, int i) {
  if (kEvenOdd<T>) return i % 2 == 0 ? v.a[i / 2] : v.b[i / 2];
  return i < kLanes ? v.a[i] : v.b[i - kLanes];
}

template <class T>
void compare_block(const char* name, const Pair& v, const T* want, int count) {
  for (int i = 0; i < kBlock; ++i) compare<float>(name, i, element<T>(v, i), i < count ? value_of(want[i]) : 0.0f);
}

template <class T>
void block_of() {
  alignas(64) T x[kBlock], to[3 * kBlock];
  for (T& e : x) e = any_element<T>();
  compare_block("load_block", load_block(x), x, kBlock);
  compare_block("widen", widen(read_raw(x)), x, kBlock);
  const Pair in_sequence = load_sequential(x, kBlock);
  compare_block("load_sequential", kEvenOdd<T> ? even_odd(in_sequence) : in_sequence, x, kBlock);

  float in_order[2 * kBlock] = {};
  Pair v = {some(), some()};
  v = {quiet(v.a), quiet(v.b)};
  for (int i = 0; i < kBlock; ++i) in_order[kBlock + position<T>(i)] = element<T>(v, i);
  compare<float>("position", 0, position<T>(kBlock + 3), kBlock + position<T>(3));
  for (int i = 0; i < kBlock; ++i) {
    compare<float>("position", i, in_order[kBlock + i], i < kLanes ? v.a[i] : v.b[i - kLanes]);
  }

  auto written = [&](const char* name, int begin, int end, auto write_it) {
    std::memset(static_cast<void*>(to), 0x5a, sizeof to);
    write_it();
    for (int i = 0; i < 3 * kBlock; ++i) {
      const int at = i - kBlock - begin;
      if (at >= 0 && at < end - begin) {
        compare<float>(name, i, value_of(to[i]), stored_value<T>(element<T>(v, at)));
      } else {
        compare<unsigned char>(name, i, lane<unsigned char>(to[i], sizeof(T) - 1), 0x5a);
      }
    }
  };
  written("write_raw", 1, 1 + kBlock, [&] { write_raw(to + kBlock + 1, narrow<T>(v)); });
  written("stream_raw", 0, kBlock, [&] {
    stream_raw(to + kBlock, narrow<T>(v));
    finish_streaming();
  });
  seen.insert("narrow");
  for (const bool past_caches : {false, true}) {
    written("store_block", 0, kBlock, [&] { store_block(to + kBlock, v, kBlock + 7, past_caches); });
  }
  for (int n = 1; n < kBlock; ++n) {
    T* end = reinterpret_cast<T*>(edge()) - n;
    std::memcpy(static_cast<void*>(end), x, n * sizeof(T));
    compare_block("read_raw", widen(read_raw(end, n)), x, n);
    compare_block("load_block", load_block(end, n), x, n);
    const Pair some_of_it = load_sequential(end, n);
    compare_block("load_sequential", kEvenOdd<T> ? even_odd(some_of_it) : some_of_it, x, n);
    const Pair first = keep_first<T>(v, n);
    for (int i = 0; i < kBlock; ++i) {
      compare<float>("keep_first", i, element<T>(first, i), i < n ? element<T>(v, i) : 0.0f);
    }
    write_raw(end, narrow<T>(v), n);
    store_block(end, v, n, n % 2 == 1);
    written("write_raw", 1, 1 + n, [&] { write_raw(to + kBlock + 1, narrow<T>(v), n); });
    written("store_block", 1, 1 + n, [&] { store_block(to + kBlock + 1, v, n, n % 2 == 0); });
  }
}

}  // namespace

void conversion() {
  F a = some();
  a[0] = number((static_cast<uint32_t>(random_bits()) & 0x8040ffffu) | 0x7f800001u);  // a NaN, quiet or not
  const F q = quiet(a);
  const H h = some_bits<H>();
  CHECK(uint32_t, "widen_words", widen_words(h), h[i]);
  CHECK(uint16_t, "round_to_bf16", round_to_bf16(q) >> 16, i % 2 == 0 ? nearest_bf16(q[i / 2]) : 0);
  const H b = to_bf16(a), f = to_f16(a);
  for (int i = 0; i < kLanes; ++i) {
    if (is_nan(a, i)) {
      compare<uint16_t>("to_bf16", i, b[i] & 0x7fff, 0x7fc0 | (b[i] & 0x3f));
      compare<uint16_t>("to_f16", i, f[i] & 0xfe00, nearest_fp16(a[i]));
    } else {
      compare<uint16_t>("to_bf16", i, b[i], stored_bf16(a[i]));
      compare<uint16_t>("to_f16", i, f[i], nearest_fp16(a[i]));
    }
  }
}

// Every pattern of the 16-bit types.
void every_half() {
  for (int first = 0; first < 0x10000; first += kLanes) {
    H h;
    for (int i = 0; i < kLanes; ++i) h[i] = static_cast<uint16_t>(first + i);
    const F b = from_bf16(h), f = from_f16(h);
    const H back = to_f16(f);
    for (int i = 0; i < kLanes; ++i) {
      compare("from_bf16", first + i, word(b[i]), static_cast<uint32_t>(h[i]) << 16);
      compare("from_f16", first + i, f[i], of_fp16(h[i]));
      compare("fp16_to_float", first + i, fp16_to_float(h[i]), of_fp16(h[i]));
      if (!is_nan(f, i)) compare("to_f16", first + i, back[i], h[i]);
    }
#if !defined(__F16C__)
    if (first % kBlock == 0) {
      uint16_t half[kBlock], again[kBlock];
      float wide[kBlock];
      for (int i = 0; i < kBlock; ++i) half[i] = static_cast<uint16_t>(first + i);
      widen_fp16(half, wide);
      narrow_fp16(wide, again);
      for (int i = 0; i < kBlock; ++i) {
        compare("widen_fp16", first + i, wide[i], of_fp16(half[i]));
        compare("narrow_fp16", first + i, of_fp16(again[i]), of_fp16(half[i]));
      }
    }
#endif
  }
}

void blocks() {
  const Pair v = {as_float(some_bits<I>()), as_float(some_bits<I>())};
  const auto at = [&](const Pair& p, int i) { return word(i < kLanes ? p.a[i] : p.b[i - kLanes]); };
  const Pair apart = even_odd(v), together = sequential(v);
  for (int i = 0; i < kBlock; ++i) {
    compare("even_odd", i, at(apart, i), at(v, i < kLanes ? 2 * i : 2 * (i - kLanes) + 1));
    compare("sequential", i, at(together, i), at(v, i / 2 + i % 2 * kLanes));
  }
  block_of<float>();
  block_of<Bf16>();
  block_of<Fp16>();

  Bf16 x[kBlock];
  for (Bf16& e : x) e = {nearest_bf16(static_cast<float>(static_cast<int>(random_bits() % 255) - 127))};
  const F sum = __builtin_convertvector(small_numbers(-99, 99), F);
  const auto pair = [&](int i, auto f) { return f(of_bf16(x[2 * i].bits)) + f(of_bf16(x[2 * i + 1].bits)); };
  const bool adds = kHasProducts<Bf16>;  // elsewhere nobody calls them
  CHECK(float, "add_squares", add_squares(sum, read_raw(x)),
        sum[i] + (adds ? pair(i, [](float e) { return e * e; }) : 0.0f));
  CHECK(float, "add_elements", add_elements(sum, read_raw(x)),
        sum[i] + (adds ? pair(i, [](float e) { return e; }) : 0.0f));
}

}  // namespace check
