// Holds every function of csrc/cpu/simd against a scalar definition, on the level that this is compiled for: what its
// parts share. tests/kernels/test_simd.py asks that no function is left out.
#pragma once

#include "check_common.h"
#include "simd/activation-inl.h"
#include "simd/bytes-inl.h"
#include "simd/transpose-inl.h"

namespace check {

using namespace sgl_kernels::SGL_ISA;

// `want` is the definition of lane i in double; it may be missed by `relative` of itself or by `absolute`.
#define CHECK_NEAR(name, call, want, relative, absolute)                                                             \
  do {                                                                                                               \
    const F result = call;                                                                                           \
    for (int i = 0; i < kLanes; ++i) check::near(name, i, result[i], static_cast<double>(want), relative, absolute); \
  } while (false)

inline void near(const char* name, int i, float got, double want, double relative, double absolute) {
  ++comparisons;
  seen.insert(name);
  // What is beyond the largest float may be that or infinity.
  const double limit = std::fabs(want) * relative + absolute, most = 3.4028235e38;
  const bool beyond = std::fabs(want) >= most * (1 - relative) && std::fabs(got) >= most * (1 - 2 * relative) &&
                      std::signbit(want) == std::signbit(got);
  if (std::isnan(want) ? std::isnan(got) : beyond || got == want || std::fabs(got - want) <= limit) return;
  if (wrong.insert(name).second) std::printf("%s lane %d: %.9g, expected %.9g\n", name, i, got, want);
}

inline bool is_nan(F x, int i) { return x[i] != x[i]; }
inline uint32_t word(float x) { return std::bit_cast<uint32_t>(x); }
inline float number(uint32_t x) { return std::bit_cast<float>(x); }

// Registers of any numbers, of any bits, and of numbers between two.
inline F some() { return any_floats<F>(); }
template <class V>
V some_bits() {
  return any_bits<V>();
}
inline F between(float low, float high) {
  F x;
  for (int i = 0; i < kLanes; ++i) {
    x[i] = low + (high - low) * static_cast<float>(random_bits() % 1000003) / 1000002.0f;
    x[i] = x[i] > high ? high : x[i];
  }
  return x;
}
inline I small_numbers(int low, int high) {
  I x;
  for (int i = 0; i < kLanes; ++i) x[i] = low + static_cast<int>(random_bits() % static_cast<uint64_t>(high - low + 1));
  return x;
}

// The 16-bit types by their definition: what a pattern stands for, and the nearest pattern, ties to even.
inline float of_bf16(uint16_t bits) { return number(static_cast<uint32_t>(bits) << 16); }
inline uint16_t nearest_bf16(float x) {
  if (x != x) return static_cast<uint16_t>(word(x) >> 16 | 0x40);
  const uint32_t cut = word(x) & 0xffff, kept = word(x) >> 16;
  return static_cast<uint16_t>(kept + (cut > 0x8000 || (cut == 0x8000 && kept % 2 == 1)));
}
inline float of_fp16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double size = exponent == 31  ? (mantissa != 0 ? NAN : INFINITY)
                      : exponent == 0 ? std::ldexp(mantissa, -24)
                                      : std::ldexp(1024 + mantissa, exponent - 25);
  return static_cast<float>(bits & 0x8000 ? -size : size);
}
inline uint16_t nearest_fp16(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double size = std::fabs(x);
  if (x != x) return sign | 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  if (size == 0) return sign;
  int exponent;
  std::frexp(size, &exponent);
  const int unit = exponent - 11 > -24 ? exponent - 11 : -24;
  const int units = static_cast<int>(std::nearbyint(std::ldexp(size, -unit)));
  return static_cast<uint16_t>(sign + ((unit + 24) << 10) + units);
}

#if defined(__AVX512BF16__)
constexpr bool kFlushes = true;  // vcvtneps2bf16 reads and writes no subnormal number
#else
constexpr bool kFlushes = false;
#endif
inline uint16_t stored_bf16(float x) {
  const bool tiny = std::fabs(x) < 0x1p-126f;
  return kFlushes && tiny ? static_cast<uint16_t>(std::signbit(x) ? 0x8000 : 0) : nearest_bf16(x);
}

void lanes();  // check_simd.cpp
void memory();
void squares();
void conversion();  // check_simd_block.cpp
void every_half();
void blocks();
void bytes();  // check_simd_math.cpp
void powers();
void activations();

}  // namespace check
