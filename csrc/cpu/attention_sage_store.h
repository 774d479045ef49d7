// Where a panel of quantised attention starts, and its result: V's scales and means, the division by the sum of the
// weights, and O^T back to rows, all in one pass.
#pragma once

#include "attention_sage.h"

namespace sgl_kernels::attention {
namespace {

static inline void start_sage(Panel* panels, int32_t count, int32_t channels, RowWalk walk, int32_t rows, float* out,
                              bool int8_values) {
  for (int n = 0; n < count; ++n) {
    Panel& panel = panels[n];
    panel.rows = min_int(kPanel, rows - n * kPanel);
    panel.vectors = (panel.rows + kLanes - 1) / kLanes;
    panel.out = out + static_cast<size_t>(n) * channels * kPanel;
    panel.fresh = true;
    panel.first = panel.last = walk.query;
    for (int j = 0; j < kMaxVectors; ++j) {
      panel.reference[j] = panel.sum[j] = F{};
      panel.position[j] = I{};
      const int used = min_int(kLanes, panel.rows - j * kLanes);
      if (used == kLanes && walk.query + kLanes < walk.sq) {  // lane by lane it took 2 % at 256 rows
        panel.position[j] = lane_index() + walk.query;
        panel.first = min_int(panel.first, walk.query);
        walk.query += kLanes;
        panel.last = max_int(panel.last, walk.query - 1);
        continue;
      }
      for (int i = 0; i < used; ++i, walk.next()) {
        panel.position[j][i] = walk.query;
        panel.first = min_int(panel.first, walk.query);
        panel.last = max_int(panel.last, walk.query);
      }
    }
    if (!int8_values) __builtin_memset(panel.out, 0, static_cast<size_t>(channels) * panel.vectors * kLanes * 4);
  }
}

// The bits of a 16-bit type in the low half of each lane. x is finite or the NaN of row_ranges, so that rounding needs
// no test for NaN (whose mantissa it could carry over).
SGL_INLINE U half_bits(F x, Type type) {
  if (type == Type::f16) return widen(to_f16(x));
  const U u = reinterpret_cast<U>(x);
  return (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}

SGL_INLINE void store_bytes(char* to, F x, int bytes) {
  if (bytes == 4 * kLanes) return store(to, x);
#if defined(__AVX512F__)
  if (bytes % 4 == 0) return _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << (bytes / 4)) - 1), x);
#endif
  __builtin_memcpy(to, &x, static_cast<size_t>(bytes));
}

// O^T / sum to rows. A row that saw no key is 0. h: of V's scales and means, or null where O^T has them already.
template <Type kType>
void store_sage(const Problem& p, char* heads, RowWalk walk, const Panel& panel, const SageHead* h) {
  constexpr int kEach = kType == Type::f32 ? 1 : 2;  // channels in 32 bits: two are joined before the transpose
  const int nv = panel.vectors;
  for (int j = 0; j < nv; ++j) {
    const int rows = min_int(kLanes, panel.rows - j * kLanes);
    char* row[kLanes];
    for (int i = 0; i < rows; ++i, walk.next()) row[i] = heads + walk.group_head * p.out.head + walk.query * p.out.seq;
    const F sum = panel.sum[j];
    const I seen = sum != F{};
    const F inverse = seen ? 1.0f / sum : F{};
    const auto result = [&](int c) {
      const F o = load<F>(panel.out + (static_cast<size_t>(c) * nv + j) * kLanes) * inverse;
      return as_float(bits(h == nullptr ? o : o * splat(h->value_scale[c]) + splat(h->value_mean[c])) & seen);
    };
    for (int c = 0; c < p.dv; c += kLanes * kEach) {
      F block[kLanes];
      const int n = min_int(kLanes * kEach, p.dv - c);
      for (int i = 0; i < kLanes; ++i) {
        if (i * kEach >= n) {
          block[i] = F{};
        } else if constexpr (kEach == 1) {
          block[i] = result(c + i);
        } else {  // an odd last channel has a companion of zeros in O^T, whose half is not stored
          block[i] = as_float(half_bits(result(c + 2 * i), kType) | half_bits(result(c + 2 * i + 1), kType) << 16);
        }
      }
      transpose(block);
      const size_t offset = static_cast<size_t>(c) * type_size(kType);
      if (rows == kLanes && n == kLanes * kEach) {
        SGL_UNROLL for (int i = 0; i < kLanes; ++i) store(row[i] + offset, block[i]);
      } else {
        for (int i = 0; i < rows; ++i) store_bytes(row[i] + offset, block[i], n * type_size(kType));
      }
    }
  }
}

}  // namespace
}  // namespace sgl_kernels::attention
