// Rows whose squares leave fp32, or lose digits in it: their statistics and their norm in doubles.
#pragma once

#include "rowwise/common-inl.h"

namespace sgl_kernels {
namespace SGL_ISA {

// Sums of squares (eps included) between these are as good as in wider arithmetic; the ends are where squares of fp32
// overflow, and where they lose digits: only a very small eps leads there. NaN is outside as well. One comparison of
// bits says all that: it is asked for every row.
constexpr float kLeastSquare = 0x1p-80f;
SGL_INLINE bool is_ordinary(float mean_square) {
  constexpr uint32_t least = __builtin_bit_cast(uint32_t, kLeastSquare);
  constexpr uint32_t end = __builtin_bit_cast(uint32_t, __builtin_inff());
  return __builtin_bit_cast(uint32_t, mean_square) - least < end - least;
}

// The same of 1 / sqrt(mean_square).
SGL_INLINE bool is_ordinary_inverse(float inverse) { return inverse > 0.0f && inverse <= 0x1p40f; }

// Calls f(value, index in a prepared array) for each element of a row, in order.
template <class T, class Function>
SGL_INLINE void each_element(const T* x, int64_t dim, Function f) {
  alignas(64) float block[kBlock];
  for (int64_t i = 0; i < dim; i += kBlock) {
    put_prepared(block, load_block(x + i, dim - i));
    const int64_t count = smaller(dim - i, kBlock);
    for (int64_t j = 0; j < count; ++j) {
      f(block[position<T>(j)], i + position<T>(j));
    }
  }
}

// Of any finite row, in doubles: no square of a float leaves their range.
template <class T>
__attribute__((noinline)) static Moments careful_moments(const T* x, int64_t dim) {
  double sum = 0.0, squares = 0.0;
  each_element(x, dim, [&](double v, int64_t) { sum += v; });
  const double mean = sum / static_cast<double>(dim);
  each_element(x, dim, [&](double v, int64_t) { squares += (v - mean) * (v - mean); });
  return {mean, squares};
}

template <class T>
SGL_INLINE double careful_inverse(const T* x, int64_t dim, float eps, Norm norm, double* mean) {
  Moments of_row = {};
  if (norm == Norm::layer) {
    of_row = careful_moments(x, dim);
  } else {  // about 0: an infinity makes only itself NaN
    each_element(x, dim, [&](double v, int64_t) { of_row.squares += v * v; });
  }
  *mean = of_row.mean;
  return 1.0 / __builtin_sqrt(of_row.squares / static_cast<double>(dim) + eps);
}

// A whole row whose sum of squares is not ordinary. Slow, and right.
template <class T>
__attribute__((noinline)) static void careful_row(const T* x, T* out, const NormArgs& args) {
  double mean;
  const double inverse = careful_inverse(x, args.dim, args.eps, args.norm, &mean);
  alignas(64) float block[kBlock];
  for (int64_t i = 0; i < args.dim; i += kBlock) {
    put_prepared(block, load_block(x + i, args.dim - i));
    for (int64_t j = 0; j < kBlock; ++j) {
      block[j] = static_cast<float>((block[j] - mean) * inverse);
    }
    const Pair v = load_block(block), gain = load_block(args.gain + i);
    const Pair shift = args.shift != nullptr ? load_block(args.shift + i) : Pair{};
    const Pair y = args.shift != nullptr ? Pair{fma(v.a, gain.a, shift.a), fma(v.b, gain.b, shift.b)}
                                         : Pair{v.a * gain.a, v.b * gain.b};
    store_block(out + i, y, args.dim - i, args.stream);
  }
}

}  // namespace SGL_ISA
}  // namespace sgl_kernels
