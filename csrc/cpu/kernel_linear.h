// A linear layer as tiles of 6 x 16 sums in registers. Included by linear_avx2.cpp and nothing else.
//
// The weight's slice is packed to fp32 once per task, 16 columns side by side for each element of depth, and stays in
// L2 while all rows of the task pass; a tile reads it by two aligned loads and x by broadcasts: 12 FMAs for 8 loads.
#pragma once

#include "kernel_elementwise.h"
#include "linear.h"

namespace sgl_kernels {
namespace SGL_ISA {

static_assert(kBlock == kLinearColumns);

template <class T>
SGL_INLINE Pair in_order(Pair v) {
  return kEvenOdd<T> ? even_odd(v) : v;
}

// 8 x 8 elements: lane j of row i becomes lane i of row j.
SGL_INLINE void transpose(F r[8]) {
  F pairs[8], fours[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    pairs[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int h = 0; h < 8; h += 4) {
    fours[h] = _mm256_shuffle_ps(pairs[h], pairs[h + 2], 0x44);
    fours[h + 1] = _mm256_shuffle_ps(pairs[h], pairs[h + 2], 0xee);
    fours[h + 2] = _mm256_shuffle_ps(pairs[h + 1], pairs[h + 3], 0x44);
    fours[h + 3] = _mm256_shuffle_ps(pairs[h + 1], pairs[h + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}

// Elements in sequence, the first `count` of a block; the rest is zero.
template <class T>
SGL_INLINE Pair load_sequential(const T* from, int64_t count) {
  if (count < kBlock) {
    const Pair v = load(from, count);
    return kEvenOdd<T> ? sequential(v) : v;
  }
  if constexpr (kEvenOdd<T>) {  // without a shuffle between halves
    const auto* bits = reinterpret_cast<const __m128i*>(from);
    return {(F)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(bits)), 16),
            (F)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(bits + 1)), 16)};
  } else {
    return load(from);
  }
}

// Columns [0, columns) x elements [0, depth) of the weight -> to[panel][element][16], missing columns as zeros.
template <class T>
static void pack_weight(const char* weight, int64_t step, int64_t columns, int64_t depth, float* to) {
  for (int64_t column = 0; column < columns; column += kLanes) {
    float* half = to + column / kLinearColumns * kLinearColumns * depth + column % kLinearColumns;
    for (int64_t k = 0; k < depth; k += kBlock) {
      F low[kLanes], high[kLanes];
#pragma GCC unroll 8
      for (int i = 0; i < kLanes; ++i) {
        Pair v = {};
        if (column + i < columns) {
          v = load_sequential(row<T>(weight, step, column + i) + k, depth - k);
        }
        low[i] = v.a;
        high[i] = v.b;
      }
      transpose(low);
      transpose(high);
      const int64_t count = smaller(kBlock, depth - k);
      for (int64_t i = 0; i < count; ++i) {
        write_vector(half + (k + i) * kLinearColumns, i < kLanes ? low[i] : high[i - kLanes]);
      }
    }
    if (column + kLanes >= columns && column % kLinearColumns == 0) {  // the other half of the last panel
      for (int64_t k = 0; k < depth; ++k) {
        write_vector(half + kLanes + k * kLinearColumns, F{});
      }
    }
  }
}

// Rows of a half type in fp32, `depth` floats apart.
template <class T>
static void widen_rows(const char* x, int64_t step, int64_t rows, int64_t depth, float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* from = row<T>(x, step, r);
    for (int64_t k = 0; k < depth; k += kBlock) {
      const Pair v = load_sequential(from + k, depth - k);
      write(to + r * depth + k, Raw<float>{v.a, v.b}, smaller(kBlock, depth - k));
    }
  }
}

// A chain of products no longer than this is summed in one register: a longer one loses accuracy (at a depth of 3072
// the mean error was 3.2 times that of a blocked sum).
constexpr int64_t kChain = 256;

struct TileArgs {
  const float* x;
  int64_t x_step;  // in floats
  const float* panel;
  int64_t depth;
  float* sums;  // 6 x 16: of the depth before this slice, and where they go if it is not the last
  bool first, last;
  const char* bias;
  char* out;
  int64_t out_step, columns;
};

// The products of `depth` elements, added to the sums or in their place.
template <int rows>
SGL_INLINE void multiply(const float* x, int64_t x_step, const float* panel, int64_t depth, bool first, float* sums) {
  F a[rows] = {}, b[rows] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const F low = read_vector<F>(panel + k * kLinearColumns);
    const F high = read_vector<F>(panel + k * kLinearColumns + kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r) {
      const F value = _mm256_broadcast_ss(x + r * x_step + k);
      a[r] = fma(value, low, a[r]);
      b[r] = fma(value, high, b[r]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < rows; ++r) {
    float* to = sums + r * kLinearColumns;
    if (!first) {
      a[r] += read_vector<F>(to);
      b[r] += read_vector<F>(to + kLanes);
    }
    write_vector(to, a[r]);
    write_vector(to + kLanes, b[r]);
  }
}

template <Activation kind, class T, int rows>
static void tile(const TileArgs& args) {
  for (int64_t k = 0; k < args.depth; k += kChain) {
    multiply<rows>(args.x + k, args.x_step, args.panel + k * kLinearColumns, smaller(kChain, args.depth - k),
                   args.first && k == 0, args.sums);
  }
  if (!args.last) {
    return;
  }
  Pair bias = {};
  if (args.bias != nullptr) {
    bias = load_sequential(reinterpret_cast<const T*>(args.bias), args.columns);
  }
  for (int r = 0; r < rows; ++r) {
    const float* sum = args.sums + r * kLinearColumns;
    Pair v = {read_vector<F>(sum) + bias.a, read_vector<F>(sum + kLanes) + bias.b};
    if constexpr (kind != Activation::none) {
      v = activated<kind, T>(v);
    }
    put(row<T>(args.out, args.out_step, r), in_order<T>(v), args.columns, false);
  }
}

template <Activation kind, class T>
SGL_INLINE void tile_of(int64_t rows, const TileArgs& args) {
  switch (rows) {
    case 1:
      return tile<kind, T, 1>(args);
    case 2:
      return tile<kind, T, 2>(args);
    case 3:
      return tile<kind, T, 3>(args);
    case 4:
      return tile<kind, T, 4>(args);
    case 5:
      return tile<kind, T, 5>(args);
    default:
      return tile<kind, T, 6>(args);
  }
}

template <Activation kind, class T>
static void linear_as(const LinearArgs& args, float* scratch) {
  const int64_t panels = (args.columns + kLinearColumns - 1) / kLinearColumns;
  float* packed = scratch;
  float* slab = packed + panels * kLinearColumns * args.depth_slice;
  float* sums = slab + kLinearTileRows * args.depth_slice;
  constexpr int64_t item = sizeof(T);
  const bool cut = args.depth > args.depth_slice;  // then the sums of every tile are kept, else those of one
  for (int64_t begin = 0; begin < args.depth; begin += args.depth_slice) {
    const int64_t depth = smaller(args.depth_slice, args.depth - begin);
    pack_weight<T>(args.weight + begin * item, args.weight_step, args.columns, depth, packed);
    TileArgs part = {};
    part.depth = depth;
    part.first = begin == 0;
    part.last = begin + depth == args.depth;
    part.out_step = args.out_step;
    for (int64_t m = 0; m < args.rows; m += kLinearTileRows) {
      const int64_t rows = smaller(kLinearTileRows, args.rows - m);
      const char* x = args.x + m * args.x_step + begin * item;
      if constexpr (kHalf<T>) {
        widen_rows<T>(x, args.x_step, rows, depth, slab);
        part.x = slab;
        part.x_step = depth;
      } else {
        part.x = reinterpret_cast<const float*>(x);
        part.x_step = args.x_step / item;
      }
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t column = p * kLinearColumns;
        part.panel = packed + column * depth;
        part.columns = args.columns - column;
        part.sums = sums + (cut ? (m * panels + p * kLinearTileRows) * kLinearColumns : 0);
        part.bias = args.bias == nullptr ? nullptr : args.bias + column * item;
        part.out = args.out + m * args.out_step + column * item;
        tile_of<kind, T>(rows, part);
      }
    }
  }
}

template <class T>
SGL_INLINE void linear_in(const LinearArgs& args, float* scratch) {
  switch (args.activation) {
    case Activation::none:
      return linear_as<Activation::none, T>(args, scratch);
    case Activation::silu:
      return linear_as<Activation::silu, T>(args, scratch);
    case Activation::gelu_tanh:
      return linear_as<Activation::gelu_tanh, T>(args, scratch);
    case Activation::gelu_erf:
      return linear_as<Activation::gelu_erf, T>(args, scratch);
  }
}

void linear(const LinearArgs& args, float* scratch) {
  by_dtype(args.dtype, [&](auto* type) { linear_in<SGL_TYPE_OF(type)>(args, scratch); });
}

}  // namespace SGL_ISA
}  // namespace sgl_kernels
