// Comparison of vectors, lane by lane, with definitions: what the checks of the emulation and of simd/ share.
#pragma once

#include <sys/mman.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <type_traits>

namespace check {

inline std::mt19937_64 random_bits(20240607);
inline std::set<std::string> wrong, seen;
inline long comparisons = 0;

template <class T, class V>
T lane(const V& v, int i) {
  T x;
  std::memcpy(&x, reinterpret_cast<const char*>(&v) + i * sizeof(T), sizeof(T));
  return x;
}

template <class T>
bool same(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    return (a != a && b != b) || std::memcmp(&a, &b, sizeof a) == 0;
  } else {
    return a == b;
  }
}

template <class T>
void compare(const char* name, int i, T got, T want) {
  ++comparisons;
  seen.insert(name);
  if (same(got, want) || !wrong.insert(name).second) return;
  std::printf("%s lane %d: %.9g, expected %.9g\n", name, i, static_cast<double>(got), static_cast<double>(want));
}

// `want` is the definition of lane i; T is the type of a lane of the result.
#define CHECK(T, name, call, want)                                                 \
  do {                                                                             \
    const auto result = call;                                                      \
    for (int i = 0; i < static_cast<int>(sizeof(result) / sizeof(T)); ++i) {       \
      check::compare<T>(name, i, check::lane<T>(result, i), static_cast<T>(want)); \
    }                                                                              \
  } while (false)
// The same for a mask or a scalar.
#define CHECK_ONE(name, call, want) check::compare(name, 0, call, static_cast<decltype(call)>(want))

template <class V>
V any_bits() {
  V v;
  for (size_t i = 0; i < sizeof(V) / 8; ++i) {
    const uint64_t x = random_bits();
    std::memcpy(reinterpret_cast<char*>(&v) + 8 * i, &x, 8);
  }
  return v;
}

inline float any_float() {
  static const float awkward[] = {
      0.0f,        -0.0f,       INFINITY,    -INFINITY,  NAN,       1.0f,      -1.0f,           0.5f,     1.5f,
      2.5f,        -2.5f,       -0.5f,       1e-40f,     -1e-45f,   3.4e38f,   127.0f,          128.0f,   -126.5f,
      24.0f,       65504.0f,    65520.0f,    -150.0f,    2e9f,      0x1p-126f, 0x1p-24f,        0x1p-25f, 0x1p31f,
      1.00390625f, 1.01171875f, 1.00048828f, 0x1.8p-24f, 0x1p-133f, 65519.99f, 0x1.fefffep127f, -87.5f};
  switch (random_bits() % 4) {
    case 0:
      return awkward[random_bits() % std::size(awkward)];
    case 1:
      return std::bit_cast<float>(static_cast<uint32_t>(random_bits()));
    case 2:
      return static_cast<float>(static_cast<int32_t>(random_bits())) * 0x1p-24f;
    default:
      return static_cast<float>(static_cast<int>(random_bits() % 2001) - 1000) / 8;
  }
}

// Memory that ends at a page without access: a masked move must not reach beyond its last lane.
inline char* edge() {
  static char* pages = nullptr;
  if (pages == nullptr) {
    pages = static_cast<char*>(mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(pages + 4096, 4096, PROT_NONE);
  }
  return pages + 4096;
}

template <class V>
V any_floats() {
  float x[sizeof(V) / sizeof(float)];
  for (float& f : x) f = any_float();
  V v;
  std::memcpy(&v, x, sizeof v);
  return v;
}

}  // namespace check
