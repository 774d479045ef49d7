// RMS and layer norm of rows, with gain and shift, alone or after a gated residual sum.
#pragma once

#include "rowwise/careful-inl.h"

namespace sgl_kernels {
namespace SGL_ISA {

// What one reading of rows adds up: x; (x - centre)^2; or both that and x - centre, to correct a rounded centre.
enum class Sum { values, squares, deviations };

struct Totals {
  float first = 0.0f, squares = 0.0f;
};

// Independent sums for one row, together enough to hide the latency of an addition (4 cycles, two a cycle). With 16
// registers and two kinds of sums no more than 4 of each: 8 spilled, and layer_norm in fp32 took 4 times as long.
template <Sum what, int rows>
constexpr int kSums = (what == Sum::deviations && kLanes < 16 ? 4 : 8) / rows;

// x holds rows of T, or what an earlier reading left of them in fp32: `keep` of a reading takes its blocks, or is null.
// uncentred: every centre is 0.
template <Sum what, class T, bool uncentred = false, class Source, int rows>
SGL_INLINE void row_sums(const Source* const (&x)[rows], int64_t dim, const float (&centre)[rows], float* const* keep,
                         Totals (&out)[rows]) {
  constexpr bool products = kHasProducts<Source> && (what == Sum::values || (what == Sum::squares && uncentred));
  constexpr int sums = kSums<what, rows>, blocks = products ? sums : sums > 1 ? sums / 2 : 1;
  F first_sum[rows][sums] = {}, square_sum[rows][sums] = {};
  const auto add = [&](int r, int chain, F v) __attribute__((always_inline)) {
    if constexpr (what != Sum::squares) {
      first_sum[r][chain] += v;
    }
    if constexpr (what != Sum::values) {
      square_sum[r][chain] = fma(v, v, square_sum[r][chain]);
    }
  };
  const auto add_block = [&](int r, int block, int64_t i, int64_t count) __attribute__((always_inline)) {
    if constexpr (products) {
      const Raw<Source> raw = count < kBlock ? read_raw(x[r] + i, count) : read_raw(x[r] + i);
      F& into = what == Sum::values ? first_sum[r][block] : square_sum[r][block];
      into = what == Sum::values ? add_elements(into, raw) : add_squares(into, raw);
      return;
    }
    Pair v = load_block(x[r] + i, count);
    if (keep != nullptr) {
      put_prepared(keep[r] + i, v);
    }
    if constexpr (what != Sum::values) {
      v = {v.a - centre[r], v.b - centre[r]};
      v = count < kBlock ? keep_first<T>(v, count) : v;
    }
    add(r, 2 * block % sums, v.a);
    add(r, (2 * block + 1) % sums, v.b);
  };
  int64_t i = 0;
  for (; i + blocks * kBlock <= dim; i += blocks * kBlock) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
      for (int block = 0; block < blocks; ++block) {
        add_block(r, block, i + block * kBlock, kBlock);
      }
    }
  }
  for (; i < dim; i += kBlock) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      add_block(r, 0, i, dim - i);
    }
  }
  const auto total = [](const F(&parts)[sums]) __attribute__((always_inline)) {
    F all = parts[0];
#pragma GCC unroll 8
    for (int chain = 1; chain < sums; ++chain) {
      all += parts[chain];
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

// Rows are read once from memory and then from the first-level cache: the caller picks `rows` so. With `wide`, room for
// padded(dim) floats a row, the later readings find there what the first one converted. False: some row is not
// ordinary; its statistics say which (is_ordinary_inverse), and nothing else.
template <Norm norm, class T, int rows>
SGL_INLINE bool statistics(const T* const (&x)[rows], int64_t dim, float eps, float* const* wide,
                           RowStatistics (&out)[rows]) {
  const float count = static_cast<float>(dim);
  float centre[rows] = {};
  Totals total[rows];
  if constexpr (norm == Norm::layer) {
    row_sums<Sum::values, T>(x, dim, centre, wide, total);
    for (int r = 0; r < rows; ++r) {
      centre[r] = total[r].first / count;
    }
    if (wide != nullptr) {
      const float* again[rows];
      for (int r = 0; r < rows; ++r) {
        again[r] = wide[r];
      }
      row_sums<kDeviations<T>, T>(again, dim, centre, nullptr, total);
    } else {
      row_sums<kDeviations<T>, T>(x, dim, centre, nullptr, total);
    }
  } else {
    row_sums<Sum::squares, T, true>(x, dim, centre, wide, total);
  }
  bool ordinary = true;
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
    const float correction = total[r].first / count;
    float mean_square = total[r].squares / count;
    if constexpr (norm == Norm::layer) {
      mean_square -= correction * correction;
    }
    out[r].centre = centre[r];
    out[r].inverse = 1.0f / square_root(mean_square + eps);
    out[r].offset = -correction * out[r].inverse;
    ordinary &= is_ordinary(mean_square + eps);
  }
  return ordinary;
}

// `rows` rows by their statistics, in one walk over gain and shift. x is of T or kept in fp32.
template <Norm norm, bool shifted, class T, int rows, class Source>
SGL_INLINE void apply(const Source* const* x, T* const* out, const RowStatistics* row_statistics, int first_row,
                      const Ahead<T>& ahead, const NormArgs& args) {
  const float *gains = args.gain, *shifts = args.shift;  // locals: a store to out may alias args
  const int64_t dim = args.dim;
  const bool past_caches = args.stream;
  RowStatistics local[rows];
  const Source* from[rows];
  T* to[rows];
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
    local[r] = row_statistics[r];
    from[r] = x[r];
    to[r] = out[r];
  }
  const auto block = [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const Pair gain = load_block(gains + i);
    const Pair shift = shifted ? load_block(shifts + i) : Pair{};
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const RowStatistics& s = local[r];
      Pair v = load_block(from[r] + i, count);
      ahead.fetch(first_row + r, i);
      if constexpr (norm == Norm::rms) {
        v = {v.a * s.inverse, v.b * s.inverse};
      } else if constexpr (kHalf<T>) {
        v = {(v.a - s.centre) * s.inverse, (v.b - s.centre) * s.inverse};
      } else {
        v = {fma(v.a - s.centre, splat(s.inverse), splat(s.offset)),
             fma(v.b - s.centre, splat(s.inverse), splat(s.offset))};
      }
      v = shifted ? Pair{fma(v.a, gain.a, shift.a), fma(v.b, gain.b, shift.b)} : Pair{v.a * gain.a, v.b * gain.b};
      store_block(to[r] + i, v, count, past_caches);
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

// Rows that one walk writes: four share the loads of gain and shift in cache (16 registers hold the statistics of only
// one). Past the caches one after the other: four open rows took 1.1 to 1.2 times as long, on Zen 3 and Zen 5.
template <Norm norm, bool shifted, class T, int rows, class Source>
SGL_INLINE void apply_all(const Source* const (&x)[rows], T* const (&out)[rows],
                          const RowStatistics (&row_statistics)[rows], const Ahead<T>& ahead, const NormArgs& args) {
  if constexpr (rows > 1 && kLanes == 16) {
    if (!args.stream) {
      apply<norm, shifted, T, rows>(x, out, row_statistics, 0, ahead, args);
      return;
    }
  }
  for (int r = 0; r < rows; ++r) {
    apply<norm, shifted, T, 1>(x + r, out + r, row_statistics + r, r, ahead, args);
  }
}

// fp16 rows whose conversion is worth keeping: at AVX2 one costs two operations for eight elements, three times over.
constexpr int64_t kWideFloats = 4096;
template <class T>
constexpr bool kKeepsWide = kHalf<T> && !kEvenOdd<T> && kLanes < 16;

template <class T, int rows>
struct Rows {
  const T* x[rows];
  T* out[rows];
};

// Each row by itself, where one of them is not ordinary. What it needs comes by value or is found again, so that the
// usual way keeps everything in registers: statistics that are also written down cost it 1 to 3 %.
template <Norm norm, bool shifted, class T, int rows>
__attribute__((noinline)) static void normalise_carefully(Rows<T, rows> block, const NormArgs& args) {
  RowStatistics found[rows];
  statistics<norm>(block.x, args.dim, args.eps, nullptr, found);
  const Ahead<T> nothing = {block.x[0], nullptr, 0, 0};
  for (int r = 0; r < rows; ++r) {
    if (is_ordinary_inverse(found[r].inverse)) {
      apply<norm, shifted, T, 1>(block.x + r, block.out + r, found + r, 0, nothing, args);
    } else {
      careful_row(block.x[r], block.out[r], args);
    }
  }
}

template <Norm norm, bool shifted, class T, int rows>
SGL_INLINE void normalise(const T* const (&x)[rows], T* const (&out)[rows], const Ahead<T>& ahead,
                          const NormArgs& args) {
  RowStatistics row_statistics[rows];
  const auto carefully = [&]() __attribute__((always_inline)) {
    Rows<T, rows> block;
    for (int r = 0; r < rows; ++r) {
      block.x[r] = x[r];
      block.out[r] = out[r];
    }
    normalise_carefully<norm, shifted>(block, args);
  };
  if constexpr (kKeepsWide<T>) {
    if (rows * padded(args.dim) <= kWideFloats) {
      alignas(64) float memory[kWideFloats];
      float* wide[rows];
      for (int r = 0; r < rows; ++r) {
        wide[r] = memory + r * padded(args.dim);
      }
      if (__builtin_expect(!statistics<norm>(x, args.dim, args.eps, wide, row_statistics), 0)) {
        carefully();
        return;
      }
      apply_all<norm, shifted>(wide, out, row_statistics, ahead, args);
      return;
    }
  }
  if (__builtin_expect(!statistics<norm>(x, args.dim, args.eps, nullptr, row_statistics), 0)) {
    carefully();
    return;
  }
  apply_all<norm, shifted>(x, out, row_statistics, ahead, args);
}

template <class T, int rows>
SGL_INLINE void normalise_as(const T* const (&x)[rows], T* const (&out)[rows], const Ahead<T>& ahead,
                             const NormArgs& args) {
  if (args.norm == Norm::layer) {
    normalise<Norm::layer, true>(x, out, ahead, args);
  } else if (args.shift != nullptr) {
    normalise<Norm::rms, true>(x, out, ahead, args);
  } else {
    normalise<Norm::rms, false>(x, out, ahead, args);
  }
}

// Whether four rows are worked on together: where they fill at most half of a first-level cache, 48 KiB of it on
// machines with AVX-512 and 32 on others.
template <class T>
SGL_INLINE bool four_together(int64_t dim) {
  constexpr int64_t item = kKeepsWide<T> ? sizeof(float) : sizeof(T);
  return 4 * padded(dim) * item <= (kLanes < 16 ? 16 << 10 : 24 << 10);
}

template <class T, int rows>
SGL_INLINE void norm_block(const NormArgs& args, int64_t r) {
  const T* x[rows];
  T* out[rows];
  for (int i = 0; i < rows; ++i) {
    x[i] = row<T>(args.x, args.x_step, r + i);
    out[i] = row<T>(args.out, args.out_step, r + i);
  }
  normalise_as(x, out, Ahead<T>{row<T>(args.x, args.x_step, r + rows), nullptr, args.x_step, 0}, args);
}

template <class T>
static void norm_rows(const NormArgs& args) {
  int64_t r = 0;
  if (four_together<T>(args.dim)) {
    for (; r + 4 <= args.rows; r += 4) {
      norm_block<T, 4>(args, r);
    }
  }
  for (; r < args.rows; ++r) {
    norm_block<T, 1>(args, r);
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
    const Pair g = load_block(gate + i), base = load_block(residual + i, count), v = load_block(x + i, count);
    const Pair total = {fma(v.a, g.a, base.a), fma(v.b, g.b, base.b)};
    store_block(out + i, total, count, keep != nullptr);
    if (keep != nullptr) {
      store_block(keep + i, total, count, false);
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
  const Ahead<T> ahead = {row<T>(args.residual, args.residual_step, r + rows), row<T>(args.x, args.x_step, r + rows),
                          args.residual_step, args.x_step};
  normalise_as(sums, out, ahead, norm);
}

template <class T>
static void residual_norm_rows(const ResidualNormArgs& args) {
  int64_t r = 0;
  if (four_together<T>(args.norm.dim)) {
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
