// A linear layer as tiles of sums in registers: 6 x 16 with AVX2, 12 x 32 with AVX-512. Included by
// linear/kernels_avx2.cpp and linear/kernels_avx512.cpp alone.
//
// The weight's slice is packed to fp32 once per task, two vectors of columns for each element of depth, and stays in L2
// while all rows of the task pass; a tile reads it by two loads and x by broadcasts: 12 FMAs for 8 loads, or 24 for 14.
#pragma once

#include "rowwise/elementwise-inl.h"
#include "linear/args.h"
#include "simd/transpose-inl.h"

namespace sgl_kernels {
namespace SGL_ISA {

constexpr LinearTile kTile = kLanes == 16 ? kLinearAvx512 : kLinearAvx2;
constexpr int64_t kColumns = kTile.columns, kTileRows = kTile.rows;
static_assert(kBlock == kColumns);

template <class T>
SGL_INLINE Pair in_order(Pair v) {
  return kEvenOdd<T> ? even_odd(v) : v;
}

constexpr int64_t kAhead = 4 * kBlock;  // elements: no hardware prefetcher follows 16 rows at once

// Columns [0, columns) x elements [0, depth) of the weight -> to[panel][element][kColumns], missing columns as zeros.
template <class T>
static void pack_weight(const char* weight, int64_t step, int64_t columns, int64_t depth, float* to) {
  for (int64_t column = 0; column < columns; column += kLanes) {
    float* half = to + column / kColumns * kColumns * depth + column % kColumns;
    for (int64_t k = 0; k < depth; k += kBlock) {
      F low[kLanes], high[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        Pair v = {};
        if (column + i < columns) {
          __builtin_prefetch(row<T>(weight, step, column + i) + k + kAhead, 0, 2);
          __builtin_prefetch(row<T>(weight, step, column + i) + k + kAhead + kLanes, 0, 2);
          v = load_sequential(row<T>(weight, step, column + i) + k, depth - k);
        }
        low[i] = v.a;
        high[i] = v.b;
      }
      transpose(low);
      transpose(high);
      const int64_t count = smaller(kBlock, depth - k);
      for (int64_t i = 0; i < count; ++i) {
        store(half + (k + i) * kColumns, i < kLanes ? low[i] : high[i - kLanes]);
      }
    }
    if (column + kLanes >= columns && column % kColumns == 0) {  // the other half of the last panel
      for (int64_t k = 0; k < depth; ++k) {
        store(half + kLanes + k * kColumns, F{});
      }
    }
  }
}

// Rows in fp32, `to_step` floats apart.
template <class T>
static void widen_rows(const char* x, int64_t step, int64_t rows, int64_t depth, int64_t to_step, float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* from = row<T>(x, step, r);
    for (int64_t k = 0; k < depth; k += kBlock) {
      store_block(to + r * to_step + k, load_sequential(from + k, depth - k), depth - k, false);
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
  float* sums;  // of a tile: of the depth before this slice, and where they go if it is not the last
  bool first, last;
  const char* bias;
  char* out;
  int64_t out_step, columns;
};

// The products of `depth` elements, added to the sums or in their place.
template <int rows>
static void multiply(const float* x, int64_t x_step, const float* panel, int64_t depth, bool first, float* sums) {
  const float* base[4];  // three rows from each (+0, +1, +2 steps): one pointer a row would need more than there are
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) base[i] = x + (3 * i < rows ? 3 * i : 0) * x_step;
  F a[rows] = {}, b[rows] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const F low = load<F>(panel + k * kColumns);
    const F high = load<F>(panel + k * kColumns + kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const F value = splat(*(base[r / 3] + r % 3 * x_step + k));
      a[r] = fma(value, low, a[r]);
      b[r] = fma(value, high, b[r]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    float* to = sums + r * kColumns;
    if (!first) {
      a[r] += load<F>(to);
      b[r] += load<F>(to + kLanes);
    }
    store(to, a[r]);
    store(to + kLanes, b[r]);
  }
}

// multiply<rows>, for 1 to kTileRows rows.
template <int rows = kTileRows>
SGL_INLINE void multiply_rows(int64_t count, const float* x, int64_t x_step, const float* panel, int64_t depth,
                              bool first, float* sums) {
  if constexpr (rows > 1) {
    if (count < rows) {
      return multiply_rows<rows - 1>(count, x, x_step, panel, depth, first, sums);
    }
  }
  multiply<rows>(x, x_step, panel, depth, first, sums);
}

template <Activation kind, class T>
static void tile(int64_t rows, const TileArgs& args) {
  for (int64_t k = 0; k < args.depth; k += kChain) {
    multiply_rows(rows, args.x + k, args.x_step, args.panel + k * kColumns, smaller(kChain, args.depth - k),
                  args.first && k == 0, args.sums);
  }
  if (!args.last) {
    return;
  }
  Pair bias = {};
  if (args.bias != nullptr) {
    bias = load_sequential(reinterpret_cast<const T*>(args.bias), args.columns);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const float* sum = args.sums + r * kColumns;
    Pair v = {load<F>(sum) + bias.a, load<F>(sum + kLanes) + bias.b};
    if constexpr (kind != Activation::none) {
      v = activated<kind, T>(v);
    }
    store_block(row<T>(args.out, args.out_step, r), in_order<T>(v), args.columns, false);
  }
}

// Rows a multiple of this many bytes apart compete for one set of the first-level cache: 12 of them with the panel ran
// at 140 to 147 GFLOP/s where 64 bytes more a row gave 175 to 183 (Zen 5). They are copied, a line apart from that.
constexpr int64_t kSameSet = 4096;

template <Activation kind, class T>
static void linear_as(const LinearArgs& args, float* scratch) {
  const int64_t panels = (args.columns + kColumns - 1) / kColumns;
  float* packed = scratch;
  float* slab = packed + panels * kColumns * args.depth_slice;
  float* sums = slab + kTileRows * (args.depth_slice + kRowGap);
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
    for (int64_t m = 0; m < args.rows; m += kTileRows) {
      const int64_t rows = smaller(kTileRows, args.rows - m);
      const char* x = args.x + m * args.x_step + begin * item;
      if (kHalf<T> || args.x_step % kSameSet == 0) {
        part.x_step = args.depth_slice + kRowGap;
        widen_rows<T>(x, args.x_step, rows, depth, part.x_step, slab);
        part.x = slab;
      } else {
        part.x = reinterpret_cast<const float*>(x);
        part.x_step = args.x_step / item;
      }
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t column = p * kColumns;
        part.panel = packed + column * depth;
        part.columns = args.columns - column;
        part.sums = sums + (cut ? (m * panels + p * kTileRows) * kColumns : 0);
        part.bias = args.bias == nullptr ? nullptr : args.bias + column * item;
        part.out = args.out + m * args.out_step + column * item;
        tile<kind, T>(rows, part);
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

static void linear(const LinearArgs& args, float* scratch) {
  by_dtype(args.dtype, [&](auto* type) { linear_in<SGL_TYPE_OF(type)>(args, scratch); });
}

const LinearKernels kLinear = {.tile = kTile, .linear = linear};

}  // namespace SGL_ISA
}  // namespace sgl_kernels
