// Elements of the kernels' 16-bit types, read and written without the processor's own conversions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

inline float from_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline double from_fp16(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  const double size = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -size : size;
}

// For |value| from 2^-14 to 65504, cut to ten bits: any number of the type near the value will do in a test.
inline uint16_t to_fp16(double value) {
  if (value != value) return 0x7e00;
  int exponent;
  const double part = std::frexp(std::fabs(value), &exponent);
  if (part == 0 || exponent < -13) return 0;
  const int mantissa = static_cast<int>(std::ldexp(part, 11)) - 1024;
  return static_cast<uint16_t>((value < 0 ? 0x8000 : 0) | ((exponent + 14) << 10) | mantissa);
}
