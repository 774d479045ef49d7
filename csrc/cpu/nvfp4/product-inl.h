// NVFP4 linear layers on bytes: exact integer products, one fp32 scale per block of 16. AVX2, SSE2 and NEON.
//
// Twice an e2m1 value is an integer, so a block's product with int8 digits is exact: four 16-bit sums of pairs, added
// before they widen. Each fp32 accumulator is an output; nothing is reduced across lanes.
#pragma once

#include "nvfp4/float_product-inl.h"

namespace sgl_kernels::nvfp4 {
namespace SGL_ISA {
namespace {

constexpr int64_t kVectors = 4;                  // vectors of columns in a tile
constexpr int64_t kColumns = kVectors * kLanes;  // 32 with AVX2
constexpr int64_t kParts = kPanel / kColumns;
constexpr int64_t kOperandBytes = 16 * kColumns;  // a part's weights for one block of k
constexpr int64_t kChunkBlocks = 32;              // blocks of k decoded at once, to be found in L1
constexpr int64_t kAhead = 8 * kBlockBytes;       // bytes of prefetch

// One part of a panel, `blocks` blocks: operands [block][vector][4][4 * kLanes bytes], scales and corrections
// [block][kColumns].
void decode_part(const uint8_t* panel, int64_t part, int64_t blocks, uint8_t* w, float* s, int32_t* correction) {
  const B table = value_table(0);
  B ones;
  for (int i = 0; i < 4 * kLanes; ++i) {
    ones[i] = 1;
  }
  for (int64_t b = 0; b < blocks; ++b, panel += kBlockBytes) {
    for (int64_t v = 0; v < kVectors; ++v) {
      const int64_t column = part * kColumns + v * kLanes;
      B x[4];
      operands(panel, column, table, x);
      Sums sum = {};
      for (int i = 0; i < 4; ++i) {
        store(w, x[i]);
        w += 4 * kLanes;
        if constexpr (kDigitOffset != 0) {
          sum += products(ones, x[i]);
        }
      }
      store(s, scales(panel + 512 + column) * kScaleBack);
      s += kLanes;
      if constexpr (kDigitOffset != 0) {
        store(correction, quads(sum) * -kDigitOffset);
        correction += kLanes;
      }
    }
  }
}

// R digit rows (from row `first` of a tile of `rows`) x kColumns over `blocks` blocks, added to c.
template <int R, bool kScaled>
__attribute__((noinline)) void tile_product(const uint8_t* a, int64_t first, int64_t rows, const uint8_t* w,
                                            const float* s, const int32_t* correction, int64_t blocks, float* c) {
  const int64_t step = tile_block_bytes(rows, kScaled);
  const uint8_t* scale = a + 20 * rows + 4 * first;
  a += 16 * first;
  F acc[R][kVectors];
#pragma GCC unroll 8
  for (int m = 0; m < R; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      acc[m][v] = load<F>(c + m * kPanel + v * kLanes);
    }
  }
  for (int64_t b = 0; b < blocks; ++b) {
#pragma GCC unroll 8
    for (int m = 0; m < R; ++m) {
      const B d0 = (B)splat_word(a + 16 * m), d1 = (B)splat_word(a + 16 * m + 4), d2 = (B)splat_word(a + 16 * m + 8),
              d3 = (B)splat_word(a + 16 * m + 12);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const uint8_t* at = w + v * 16 * kLanes;
        Sums t = products(d0, load<B>(at)) + products(d1, load<B>(at + 4 * kLanes));
        t += products(d2, load<B>(at + 8 * kLanes)) + products(d3, load<B>(at + 12 * kLanes));
        I whole = quads(t);
        if constexpr (kDigitOffset != 0) {
          whole += load<I>(correction + v * kLanes);
        }
        F factor = load<F>(s + v * kLanes);
        if constexpr (kScaled) {
          factor = factor * as_float(splat_word(scale + 4 * m));
        }
        acc[m][v] = fma(__builtin_convertvector(whole, F), factor, acc[m][v]);
      }
    }
    a += step;
    scale += step;
    w += kOperandBytes;
    s += kColumns;
    correction += kDigitOffset != 0 ? kColumns : 0;
  }
#pragma GCC unroll 8
  for (int m = 0; m < R; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      store(c + m * kPanel + v * kLanes, acc[m][v]);
    }
  }
}

// R <= kDirectRows digit rows x a whole panel, weights decoded in registers; c is R x kPanel.
template <int R, bool kScaled>
__attribute__((noinline)) void direct_product(const uint8_t* a, const uint8_t* panel, int64_t blocks, float* c) {
  constexpr int kGroups = kPanel / kLanes;
  const B table = value_table(kWeightOffset);
  F acc[R][kGroups] = {};
  for (int64_t b = 0; b < blocks; ++b) {
#pragma GCC unroll 9
    for (int i = 0; i < 9; ++i) {
      __builtin_prefetch(panel + kAhead + 64 * i);
    }
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g) {
      B w[4];
      operands(panel, g * kLanes, table, w);
      const F s = scales(panel + 512 + g * kLanes);
#pragma GCC unroll 4
      for (int m = 0; m < R; ++m) {
        const uint8_t* digit = a + 16 * m;
        Sums t = products(w[0], (B)splat_word(digit)) + products(w[1], (B)splat_word(digit + 4));
        t += products(w[2], (B)splat_word(digit + 8)) + products(w[3], (B)splat_word(digit + 12));
        I whole = quads(t);
        if constexpr (kWeightOffset != 0) {
          whole += splat_word(a + 16 * R + 4 * m);
        }
        const F factor = kScaled ? s * as_float(splat_word(a + 20 * R + 4 * m)) : s;
        acc[m][g] = fma(__builtin_convertvector(whole, F), factor, acc[m][g]);
      }
    }
    a += tile_block_bytes(R, kScaled);
    panel += kBlockBytes;
  }
  for (int m = 0; m < R; ++m) {
    for (int g = 0; g < kGroups; ++g) {
      store(c + m * kPanel + g * kLanes, acc[m][g] * kScaleBack);
    }
  }
}

template <bool kScaled>
void direct_of(int64_t rows, const uint8_t* a, const uint8_t* panel, int64_t blocks, float* c) {
  switch (rows) {
    case 1:
      return direct_product<1, kScaled>(a, panel, blocks, c);
    case 2:
      return direct_product<2, kScaled>(a, panel, blocks, c);
    case 3:
      return direct_product<3, kScaled>(a, panel, blocks, c);
    default:
      return direct_product<4, kScaled>(a, panel, blocks, c);
  }
}

// Sums digits, applies scales and bias, rounds once.
void finish(const Linear& layer, const float* c, const float* row_scale, int64_t rows, void* out, Element type,
            int64_t panel, int64_t count) {
  const int64_t first = panel * kPanel;
  const int64_t columns = layer.n - first < kPanel ? layer.n - first : kPanel;
  float bias[kPanel] = {}, row[kPanel];
  if (layer.bias != nullptr) {
    const int64_t whole = columns / kBlock * kBlock, size = bytes_of(layer.bias_type);
    to_floats(layer.bias, layer.bias_type, first, whole, bias);
    uint8_t tail[kBlock * 4] = {};
    __builtin_memcpy(tail, static_cast<const uint8_t*>(layer.bias) + (first + whole) * size,
                     static_cast<size_t>((columns - whole) * size));
    if (whole < kPanel) {
      to_floats(tail, layer.bias_type, 0, kBlock, bias + whole);
    }
  }
  for (int64_t m = 0; m < rows; ++m) {
    const F factor = splat(row_scale[m] * layer.global_scale);
    for (int64_t g = 0; g < kPanel; g += kLanes) {
      const float* at = c + m * count * kPanel + g;
      F v = load<F>(at + (count - 1) * kPanel);
      for (int64_t d = count - 2; d >= 0; --d) {
        v = fma(v, splat(256.0f), load<F>(at + d * kPanel));
      }
      v = v * factor;
      if (layer.bias != nullptr) {
        v = v + load<F>(bias + g);
      }
      store(row + g, v);
    }
    from_floats(row, type, columns, out, m * layer.n + first);
  }
}

template <bool kScaled>
void panel_product(const Linear& layer, const uint8_t* panel, const uint8_t* tiles, int64_t rows, float* c, uint8_t* w,
                   float* s, int32_t* correction) {
  const int64_t blocks = layer.k / kBlock;
  __builtin_memset(c, 0, static_cast<size_t>(rows * kPanel) * sizeof(float));
  for (int64_t b = 0; b < blocks; b += kChunkBlocks) {
    const int64_t now = blocks - b < kChunkBlocks ? blocks - b : kChunkBlocks;
    for (int64_t part = 0; part < kParts; ++part) {
      decode_part(panel + b * kBlockBytes, part, now, w, s, correction);
      for (int64_t m = 0; m < rows; m += kTileRows) {
        const int64_t r = rows - m < kTileRows ? rows - m : kTileRows;
        const uint8_t* tile =
            tiles + (m / kTileRows) * blocks * tile_block_bytes(kTileRows, kScaled) + b * tile_block_bytes(r, kScaled);
        float* to = c + m * kPanel + part * kColumns;
        int64_t i = 0;
        for (; i + 2 <= r; i += 2) {
          tile_product<2, kScaled>(tile, i, r, w, s, correction, now, to + i * kPanel);
        }
        if (i < r) {
          tile_product<1, kScaled>(tile, i, r, w, s, correction, now, to + i * kPanel);
        }
      }
    }
  }
}

int64_t panel_scratch_bytes(int64_t rows, Coding coding) {
  static_assert(float_scratch_bytes() <= kChunkBlocks * kOperandBytes);
  return rows * (in_floats(coding, rows) ? 1 : digits(coding)) * kPanel * 4 +
         kChunkBlocks * (kOperandBytes + 8 * kColumns);
}

int64_t rows_at_once(int64_t rows, Coding coding) {
  return in_floats(coding, rows) ? kFloatRowsAtOnce : digit_rows_at_once(coding);
}

void multiply(const Linear& layer, const uint8_t* tiles, const float* row_scale, int64_t rows, void* out, Element type,
              int64_t begin, int64_t end, uint8_t* scratch) {
  const bool scaled = has_block_scale(layer.coding), floats = in_floats(layer.coding, rows);
  const int64_t blocks = layer.k / kBlock, count = floats ? 1 : digits(layer.coding), all = rows * count;
  float* c = reinterpret_cast<float*>(scratch);
  uint8_t* w = scratch + all * kPanel * 4;
  float* s = reinterpret_cast<float*>(w + kChunkBlocks * kOperandBytes);
  int32_t* correction = reinterpret_cast<int32_t*>(s + kChunkBlocks * kColumns);
  for (int64_t p = begin; p < end; ++p) {
    const uint8_t* panel = layer.weight + p * blocks * kBlockBytes;
    if (floats) {
      float_product(panel, reinterpret_cast<const float*>(tiles), rows, layer.k, c, reinterpret_cast<float*>(w));
    } else if (all <= kDirectRows) {
      scaled ? direct_of<true>(all, tiles, panel, blocks, c) : direct_of<false>(all, tiles, panel, blocks, c);
    } else if (scaled) {
      panel_product<true>(layer, panel, tiles, all, c, w, s, correction);
    } else {
      panel_product<false>(layer, panel, tiles, all, c, w, s, correction);
    }
    finish(layer, c, row_scale, rows, out, type, p, count);
  }
}

// Panel to (k, 64) values without the global scale, row stride `stride` elements, `columns` of the 64 written.
void decode_panel(const uint8_t* panel, int64_t k, Element type, void* out, int64_t stride, int64_t columns) {
  const B table = value_table(0);
  for (int64_t b = 0; b < k / kBlock; ++b, panel += kBlockBytes) {
    for (int64_t at = 0; at < columns; at += 2 * kLanes) {
      B x[2][4];
      operands(panel, at, table, x[0]);
      operands(panel, at + kLanes, table, x[1]);
      const F s[2] = {scales(panel + 512 + at) * kScaleBack, scales(panel + 512 + at + kLanes) * kScaleBack};
      const int64_t count = columns - at < 2 * kLanes ? columns - at : 2 * kLanes;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
        for (int byte = 0; byte < 4; ++byte) {
          const int64_t to = (b * kBlock + 4 * i + byte) * stride + at;
          const F first = __builtin_convertvector(((I)x[0][i] << (24 - 8 * byte)) >> 24, F) * s[0];
          const F second = __builtin_convertvector(((I)x[1][i] << (24 - 8 * byte)) >> 24, F) * s[1];
          if (type == Element::f32 && count == 2 * kLanes) {
            store(static_cast<float*>(out) + to, first);
            store(static_cast<float*>(out) + to + kLanes, second);
          } else {
            float both[2 * kLanes];
            store(both, first);
            store(both + kLanes, second);
            from_floats(both, type, count, out, to);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace SGL_ISA
}  // namespace sgl_kernels::nvfp4
