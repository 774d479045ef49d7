// RMS and layer norm of rows, with gain and shift, alone or after a gated residual sum.
#pragma once

#include "kernel_common.h"

namespace sgl_kernels {
namespace SGL_ISA {

// Four chains of additions for one row, or one for each of four rows: both hide the latency of the sum.
template <int rows>
constexpr int kChains = rows >= 4 ? 1 : 4 / rows;

// What one reading of rows adds up: x; (x - centre)^2; or both that and x - centre, to correct a rounded centre.
enum class Sum { values, squares, deviations };

struct Totals {
  float first = 0.0f, squares = 0.0f;
};

template <Sum what, class T, int rows>
SGL_INLINE void row_sums(const T* const (&x)[rows], int64_t dim, const float (&centre)[rows], Totals (&out)[rows]) {
  constexpr int chains = kChains<rows>;
  Pair first_sum[rows][chains] = {}, square_sum[rows][chains] = {};
  const auto add = [&](int r, int c, Pair v, int64_t count) __attribute__((always_inline)) {
    if constexpr (what != Sum::values) {
      v = {v.a - centre[r], v.b - centre[r]};
      v = count < kBlock ? first<T>(v, count) : v;
      square_sum[r][c] = {fma(v.a, v.a, square_sum[r][c].a), fma(v.b, v.b, square_sum[r][c].b)};
    }
    if constexpr (what != Sum::squares) {
      first_sum[r][c] = {first_sum[r][c].a + v.a, first_sum[r][c].b + v.b};
    }
  };
  int64_t i = 0;
  for (; i + chains * kBlock <= dim; i += chains * kBlock) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < chains; ++c) {
        add(r, c, load(x[r] + i + c * kBlock), kBlock);
      }
    }
  }
  for (; i < dim; i += kBlock) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      add(r, 0, load(x[r] + i, dim - i), dim - i);
    }
  }
  const auto total = [](const Pair(&sums)[chains]) __attribute__((always_inline)) {
    F all = sums[0].a + sums[0].b;
#pragma GCC unroll 4
    for (int c = 1; c < chains; ++c) {
      all += sums[c].a + sums[c].b;
    }
    return sum(all);
  };
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
    out[r].first = what != Sum::squares ? total(first_sum[r]) : 0.0f;
    out[r].squares = what != Sum::values ? total(square_sum[r]) : 0.0f;
  }
}

// A row's result is fma(x - centre, inverse, offset): offset brings in what rounding took from the mean. (Leaving the
// whole mean to the offset would save the subtraction, and make 6e-3 of a constant row of 100 at eps = 1e-6.)
struct RowStatistics {
  float centre = 0.0f, inverse = 0.0f, offset = 0.0f;
};

// fp32 rows get the corrected two-pass algorithm: at a mean of 100 deviations, half a unit of the mean's last place
// is as much as the result may err. In 16 bits the rounding of x hides it.
template <class T>
constexpr Sum kDeviations = kHalf<T> ? Sum::squares : Sum::deviations;

// Rows are read once from memory and then from the first-level cache: the caller picks `rows` so.
template <Norm norm, class T, int rows>
SGL_INLINE void statistics(const T* const (&x)[rows], int64_t dim, float eps, RowStatistics (&out)[rows]) {
  const float count = static_cast<float>(dim);
  float centre[rows] = {};
  Totals total[rows];
  if constexpr (norm == Norm::layer) {
    row_sums<Sum::values>(x, dim, centre, total);
    for (int r = 0; r < rows; ++r) {
      centre[r] = total[r].first / count;
    }
    row_sums<kDeviations<T>>(x, dim, centre, total);
  } else {
    row_sums<Sum::squares>(x, dim, centre, total);
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
    const float correction = total[r].first / count;
    const float mean_square = norm == Norm::layer ? total[r].squares / count - correction * correction
                                                  : total[r].squares / count;
    out[r].centre = centre[r];
    out[r].inverse = 1.0f / square_root(mean_square + eps);
    out[r].offset = -correction * out[r].inverse;
  }
}

template <Norm norm, bool shifted, class T, int rows>
SGL_INLINE void normalise(const T* const (&x)[rows], T* const (&out)[rows], const NormArgs& args) {
  RowStatistics row_statistics[rows];
  statistics<norm>(x, args.dim, args.eps, row_statistics);
  const float *gains = args.gain, *shifts = args.shift;  // locals: a store to out may alias args
  const int64_t dim = args.dim;
  const bool past_caches = args.stream;
  const auto block = [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const Pair gain = load(gains + i);
    const Pair shift = shifted ? load(shifts + i) : Pair{};
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const RowStatistics& s = row_statistics[r];
      Pair v = load(x[r] + i, count);
      if constexpr (norm == Norm::rms) {
        v = {v.a * s.inverse, v.b * s.inverse};
      } else if constexpr (kHalf<T>) {
        v = {(v.a - s.centre) * s.inverse, (v.b - s.centre) * s.inverse};
      } else {
        v = {fma(v.a - s.centre, splat(s.inverse), splat(s.offset)),
             fma(v.b - s.centre, splat(s.inverse), splat(s.offset))};
      }
      v = shifted ? Pair{fma(v.a, gain.a, shift.a), fma(v.b, gain.b, shift.b)}
                  : Pair{v.a * gain.a, v.b * gain.b};
      put(out[r] + i, v, count, past_caches);
    }
  };
  int64_t i = 0;
  for (; i + kBlock <= dim; i += kBlock) {
    block(i, kBlock);
  }
  if (i < dim) {
    block(i, dim - i);
  }
}

template <class T, int rows>
SGL_INLINE void normalise_as(const T* const (&x)[rows], T* const (&out)[rows], const NormArgs& args) {
  if (args.norm == Norm::layer) {
    normalise<Norm::layer, true>(x, out, args);
  } else if (args.shift != nullptr) {
    normalise<Norm::rms, true>(x, out, args);
  } else {
    normalise<Norm::rms, false>(x, out, args);
  }
}

// Rows worked on together: four where they fill at most half of a 48 KiB first-level cache.
constexpr int64_t kTogetherBytes = 24 << 10;

template <class T>
static void norm_rows(const NormArgs& args) {
  int64_t r = 0;
  if (4 * args.dim * static_cast<int64_t>(sizeof(T)) <= kTogetherBytes) {
    for (; r + 4 <= args.rows; r += 4) {
      const T* x[4];
      T* out[4];
      for (int i = 0; i < 4; ++i) {
        x[i] = row<T>(args.x, args.x_step, r + i);
        out[i] = row<T>(args.out, args.out_step, r + i);
      }
      normalise_as(x, out, args);
    }
  }
  for (; r < args.rows; ++r) {
    const T* x[1] = {row<T>(args.x, args.x_step, r)};
    T* out[1] = {row<T>(args.out, args.out_step, r)};
    normalise_as(x, out, args);
  }
  if (args.stream) {
    finish_streaming();
  }
}

static void norm(const NormArgs& args) {
  by_dtype(args.dtype, [&](auto* type) { norm_rows<SGL_TYPE_OF(type)>(args); });
}

// One row of residual + gate * x, written to `out` and, when streaming, to `keep` for the norm to read.
template <class T>
SGL_INLINE void residual_row(const T* residual, const T* x, const float* gate, int64_t dim, T* out, T* keep) {
  const auto block = [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const Pair g = load(gate + i), base = load(residual + i, count), v = load(x + i, count);
    const Pair total = {fma(v.a, g.a, base.a), fma(v.b, g.b, base.b)};
    put(out + i, total, count, keep != nullptr);
    if (keep != nullptr) {
      put(keep + i, total, count, false);
    }
  };
  int64_t i = 0;
  for (; i + kBlock <= dim; i += kBlock) {
    block(i, kBlock);
  }
  if (i < dim) {
    block(i, dim - i);
  }
}

template <class T, int rows>
SGL_INLINE void residual_norm_block(const ResidualNormArgs& args, int64_t r) {
  const NormArgs& norm = args.norm;
  const T* sums[rows];
  T* out[rows];
  for (int i = 0; i < rows; ++i) {
    T* total = row<T>(args.residual_out, args.residual_out_step, r + i);
    T* keep = norm.stream ? reinterpret_cast<T*>(args.keep) + i * padded(norm.dim) : nullptr;
    residual_row(row<T>(args.residual, args.residual_step, r + i), row<T>(args.x, args.x_step, r + i), args.gate,
                 norm.dim, total, keep);
    sums[i] = keep != nullptr ? keep : total;
    out[i] = row<T>(norm.out, norm.out_step, r + i);
  }
  normalise_as(sums, out, norm);
}

template <class T>
static void residual_norm_rows(const ResidualNormArgs& args) {
  int64_t r = 0;
  if (4 * args.norm.dim * static_cast<int64_t>(sizeof(T)) <= kTogetherBytes) {
    for (; r + 4 <= args.norm.rows; r += 4) {
      residual_norm_block<T, 4>(args, r);
    }
  }
  for (; r < args.norm.rows; ++r) {
    residual_norm_block<T, 1>(args, r);
  }
  if (args.norm.stream) {
    finish_streaming();
  }
}

static void residual_norm(const ResidualNormArgs& args) {
  by_dtype(args.norm.dtype, [&](auto* type) { residual_norm_rows<SGL_TYPE_OF(type)>(args); });
}

}  // namespace SGL_ISA
}  // namespace sgl_kernels
