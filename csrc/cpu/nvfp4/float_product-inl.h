// W4A16 for fp32 activations: a part of the weight decoded to fp32 in L1, then plain FMA tiles. AVX2, SSE2 and NEON.
//
// Four int8 digits for an fp32 x would cost 1.5 times these FMAs; torch's own product over decoded slices pays for
// writing the slices to memory (7.5 ms of 31 at M = 64 on a Zen 3 core, where this decoding costs under 2).
#pragma once

#include "nvfp4/encode-inl.h"

namespace sgl_kernels::nvfp4 {
namespace SGL_ISA {
namespace {

constexpr int64_t kFloatColumns = 2 * kLanes;
constexpr int64_t kFloatBlocks = 16;  // blocks of k at once: 16 KB of fp32 with AVX2
constexpr int kFloatRows = 6;         // 12 accumulators of 16 registers

// Rows in one go: theirs of x (96 KB a chunk of k) are read for every 16 columns. 256 rows gave 0.96 of torch's fp32
// product at 1024 x 3072 x 3072 (Zen 3, 512 KB of L2), 128 and less 1.03 to 1.08.
constexpr int64_t kFloatRowsAtOnce = 96;

constexpr int64_t float_scratch_bytes() { return kFloatBlocks * kBlock * kFloatColumns * 4; }

// Columns [at, at + kFloatColumns) of a panel, `blocks` blocks, to w: [k][kFloatColumns], exact.
SGL_INLINE void decode_floats(const uint8_t* panel, int64_t at, int64_t blocks, float* w) {
  const B table = value_table(0);
  for (int64_t b = 0; b < blocks; ++b, panel += kBlockBytes) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      B x[4];
      const int64_t column = at + half * kLanes;
      operands(panel, column, table, x);
      const F s = scales(panel + 512 + column) * kScaleBack;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
        for (int byte = 0; byte < 4; ++byte) {
          const I value = ((I)x[i] << (24 - 8 * byte)) >> 24;
          store(w + (b * kBlock + 4 * i + byte) * kFloatColumns + half * kLanes, __builtin_convertvector(value, F) * s);
        }
      }
    }
  }
}

// R rows of x (stride k) x kFloatColumns over n of k, added to c (stride kPanel).
template <int R>
__attribute__((noinline)) void float_tile(const float* x, int64_t k, const float* w, int64_t n, float* c) {
  F acc[R][2] = {};
  for (int64_t i = 0; i < n; ++i, w += kFloatColumns) {
    const F w0 = load<F>(w), w1 = load<F>(w + kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < R; ++m) {
      const F v = as_float(splat_word(x + m * k + i));
      acc[m][0] = fma(v, w0, acc[m][0]);
      acc[m][1] = fma(v, w1, acc[m][1]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < R; ++m) {
    store(c + m * kPanel, load<F>(c + m * kPanel) + acc[m][0]);
    store(c + m * kPanel + kLanes, load<F>(c + m * kPanel + kLanes) + acc[m][1]);
  }
}

// rows x 64 into c, from x in fp32 (rows, k). w: float_scratch_bytes.
inline void float_product(const uint8_t* panel, const float* x, int64_t rows, int64_t k, float* c, float* w) {
  const int64_t blocks = k / kBlock;
  __builtin_memset(c, 0, static_cast<size_t>(rows * kPanel) * sizeof(float));
  for (int64_t b = 0; b < blocks; b += kFloatBlocks) {
    const int64_t now = blocks - b < kFloatBlocks ? blocks - b : kFloatBlocks;
    for (int64_t at = 0; at < kPanel; at += kFloatColumns) {
      decode_floats(panel + b * kBlockBytes, at, now, w);
      int64_t m = 0;
      const auto tile = [&]<int R>() {
        for (; m + R <= rows; m += R) {
          float_tile<R>(x + m * k + b * kBlock, k, w, now * kBlock, c + m * kPanel + at);
        }
      };
      tile.template operator()<kFloatRows>();
      tile.template operator()<3>();
      tile.template operator()<1>();
    }
  }
}

}  // namespace
}  // namespace SGL_ISA
}  // namespace sgl_kernels::nvfp4
