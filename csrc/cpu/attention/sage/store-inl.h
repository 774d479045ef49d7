// The result of a panel of quantised attention: V's scales and means, the division by the sum of the weights, and O^T
// back to rows, all in one pass.
#pragma once

#include "attention/sage/measure-inl.h"

namespace sgl_kernels::attention {
namespace {

// The bits of a 16-bit type in the low half of each lane. x is finite or the NaN of row_ranges, so that rounding needs
// no test for NaN (whose mantissa it could carry over).
template <Type kType>
SGL_INLINE U half_bits(F x) {
  if constexpr (kType == Type::f16) return widen_words(to_f16(x));
  return round_to_bf16(x) >> 16;
}

// The first 4 of kLanes elements of every row (the rest of `block` is not read): a row's are 16 bytes in one piece.
SGL_INLINE void store_quarters(char* const* row, int rows, size_t offset, const F (&block)[kLanes]) {
#if defined(__AVX512F__)
  const auto at = [&](int i) { return reinterpret_cast<__m512i>(block[i]); };
  const __m512i a = _mm512_unpacklo_epi32(at(0), at(1)), b = _mm512_unpackhi_epi32(at(0), at(1));
  const __m512i c = _mm512_unpacklo_epi32(at(2), at(3)), d = _mm512_unpackhi_epi32(at(2), at(3));
  __m512i quads[4];  // row 4 i + r: quad i of quads[r]
  quads[0] = _mm512_unpacklo_epi64(a, c);
  quads[1] = _mm512_unpackhi_epi64(a, c);
  quads[2] = _mm512_unpacklo_epi64(b, d);
  quads[3] = _mm512_unpackhi_epi64(b, d);
  for (int i = 0; i < rows; ++i) {
    __builtin_memcpy(row[i] + offset, reinterpret_cast<const char*>(quads + i % 4) + i / 4 * 16, 16);
  }
#endif
}

// O^T / sum to rows. A row that saw no key is 0. kBytes: O^T lacks V's scales and means, which are h's.
template <Type kType, bool kBytes>
__attribute__((noinline)) void store_sage(const Problem& p, char* heads, RowWalk walk, const Panel& panel,
                                          const SageHead& h) {
  constexpr int kEach = kType == Type::f32 ? 1 : 2;  // channels in 32 bits: two are joined before the transpose
  const int nv = panel.vectors;
  const int bytes = p.dv * type_size(kType);
  const size_t step = static_cast<size_t>(nv) * kLanes;
  for (int j = 0; j < nv; ++j) {
    const int rows = min_int(kLanes, panel.rows - j * kLanes);
    char* row[kLanes];
    for (int i = 0; i < rows; ++i, walk.next()) row[i] = heads + walk.group_head * p.out.head + walk.query * p.out.seq;
    if (j + 1 < nv) {
      RowWalk next = walk;
      for (int i = min_int(kLanes, panel.rows - (j + 1) * kLanes); i > 0; --i, next.next()) {
        const char* to = heads + next.group_head * p.out.head + next.query * p.out.seq;
        for (int b = 0; b < bytes; b += 64) __builtin_prefetch(to + b, 1);
        __builtin_prefetch(to + bytes - 1, 1);
      }
    }
    const F sum = panel.sum[j];
    const I seen = sum != F{};
    const F inverse = seen ? 1.0f / sum : F{};
    const float *from = panel.out + j * kLanes, *scale = h.value_scale, *mean = h.value_mean;
    const auto result = [&](int c) {  // channel c from where the pointers are
      F o = load<F>(from + c * step) * inverse;
      if constexpr (kBytes) o = o * splat(scale[c]) + splat(mean[c]);
      return seen ? o : F{};
    };
    const auto element = [&](int i) {
      if constexpr (kEach == 1) return result(i);
      return as_float(half_bits<kType>(result(2 * i)) | half_bits<kType>(result(2 * i + 1)) << 16);
    };
    constexpr int kChannels = kLanes * kEach;
    for (int c = 0; c < p.dv; c += kChannels, from += kChannels * step, scale += kChannels, mean += kChannels) {
      F block[kLanes];
      const int n = min_int(kChannels, p.dv - c);
      const size_t offset = static_cast<size_t>(c) * type_size(kType);
      if (n == kChannels) {
        SGL_UNROLL for (int i = 0; i < kLanes; ++i) block[i] = element(i);
      } else {  // an odd last channel has a companion of zeros in O^T, whose half is not stored
        for (int i = 0; i < kLanes; ++i) block[i] = i * kEach < n ? element(i) : F{};
      }
      if (kLanes == 16 && n == 4 * kEach) {  // of head_dim 72 in 16 bits
        store_quarters(row, rows, offset, block);
        continue;
      }
      transpose(block);
      if (rows == kLanes && n == kChannels) {
        SGL_UNROLL for (int i = 0; i < kLanes; ++i) store(row[i] + offset, block[i]);
      } else {
        for (int i = 0; i < rows; ++i) store_bytes(row[i] + offset, block[i], n * type_size(kType));
      }
    }
  }
}

}  // namespace
}  // namespace sgl_kernels::attention
