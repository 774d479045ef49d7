// Squares of lanes: transposed, or each row brought down to one number.
#pragma once

#include "simd/lanes-inl.h"

namespace sgl_kernels {
namespace SGL_ISA {

// Lane j of row i becomes lane i of row j. V is a vector type of 16, 8 or 4 lanes.
template <class V, int kCount>
SGL_INLINE void transpose(V (&rows)[kCount]) {
  static_assert(sizeof(V) == 4 * kCount);
#if defined(__AVX512F__)
  if constexpr (kCount == 16) {
    __m512i r[16], t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = reinterpret_cast<__m512i>(rows[i]);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
      r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
      r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
      r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {  // quarters of 128 bits
      t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
      t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
      t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
      t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      rows[i] = reinterpret_cast<V>(_mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
      rows[i + 8] = reinterpret_cast<V>(_mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
    }
    return;
  }
#endif
#if defined(__AVX2__)
  if constexpr (kCount == 8) {
    // gcc moves the elements of the loop below one at a time: 2.5 times the instructions.
    V t[8], u[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      t[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
      t[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {  // u[4 i + c], halves h: column 4 h + c of rows 4 i .. 4 i + 3
      u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      rows[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
      rows[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
    return;
  }
#endif
#if defined(__x86_64__)
  if constexpr (kCount == 4) {
    const V t0 = _mm_unpacklo_ps(rows[0], rows[1]), t1 = _mm_unpackhi_ps(rows[0], rows[1]);
    const V t2 = _mm_unpacklo_ps(rows[2], rows[3]), t3 = _mm_unpackhi_ps(rows[2], rows[3]);
    rows[0] = _mm_movelh_ps(t0, t2);
    rows[1] = _mm_movehl_ps(t2, t0);
    rows[2] = _mm_movelh_ps(t1, t3);
    rows[3] = _mm_movehl_ps(t3, t1);
    return;
  }
#endif
  V copy[kCount];
  for (int i = 0; i < kCount; ++i) copy[i] = rows[i];
  for (int i = 0; i < kCount; ++i) {
    for (int j = 0; j < kCount; ++j) rows[i][j] = copy[j][i];
  }
}

// Lane i: the sum of the lanes of x[i], added in an order of the level's own; x may be overwritten.
SGL_INLINE F sum_each(F (&x)[kLanes]) {
#if defined(__AVX512F__)
  __m512 a[8], b[4];  // 45 instructions for 16 sums; a transpose and 15 additions take 79
  SGL_UNROLL for (int i = 0; i < 8; ++i) {
    a[i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]) + _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
  }
  SGL_UNROLL for (int i = 0; i < 4; ++i) {
    const __m512d even = _mm512_castps_pd(a[2 * i]), odd = _mm512_castps_pd(a[2 * i + 1]);
    b[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(even, odd)) + _mm512_castpd_ps(_mm512_unpackhi_pd(even, odd));
  }
  const __m512 lo = _mm512_shuffle_f32x4(b[0], b[1], 0x88) + _mm512_shuffle_f32x4(b[0], b[1], 0xdd);
  const __m512 hi = _mm512_shuffle_f32x4(b[2], b[3], 0x88) + _mm512_shuffle_f32x4(b[2], b[3], 0xdd);
  return _mm512_shuffle_f32x4(lo, hi, 0x88) + _mm512_shuffle_f32x4(lo, hi, 0xdd);
#elif defined(__AVX2__)
  F a[4], b[2];  // 21 instructions for 8 sums
  SGL_UNROLL for (int i = 0; i < 4; ++i) {
    a[i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]) + _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
  }
  SGL_UNROLL for (int i = 0; i < 2; ++i) {
    const F even = a[2 * i], odd = a[2 * i + 1];
    b[i] = _mm256_shuffle_ps(even, odd, 0x44) + _mm256_shuffle_ps(even, odd, 0xee);
  }
  return _mm256_permute2f128_ps(b[0], b[1], 0x20) + _mm256_permute2f128_ps(b[0], b[1], 0x31);
#else
  transpose(x);
  F s = x[0];
  SGL_UNROLL for (int i = 1; i < kLanes; ++i) s += x[i];
  return s;
#endif
}

// Lane i: the lanes of rows[i] combined in an order of the level's own. With AVX-512 the rows are halved in four
// steps, 45 instructions; a transpose and a sum are 79.
template <class Combine>
SGL_INLINE I combine_rows(I (&rows)[kLanes], Combine combine) {
#if defined(__AVX512F__)
  const auto of = [](I x) { return reinterpret_cast<__m512i>(x); };
  const auto to = [](__m512i x) { return reinterpret_cast<I>(x); };
  I a[8], b[4], c[2];
  SGL_UNROLL for (int i = 0; i < 8; ++i) {
    const __m512i x = of(rows[2 * i]), y = of(rows[2 * i + 1]);
    a[i] = combine(to(_mm512_unpacklo_epi32(x, y)), to(_mm512_unpackhi_epi32(x, y)));
  }
  SGL_UNROLL for (int i = 0; i < 4; ++i) {
    const __m512i x = of(a[2 * i]), y = of(a[2 * i + 1]);
    b[i] = combine(to(_mm512_unpacklo_epi64(x, y)), to(_mm512_unpackhi_epi64(x, y)));
  }
  SGL_UNROLL for (int i = 0; i < 2; ++i) {
    const __m512i x = of(b[2 * i]), y = of(b[2 * i + 1]);
    c[i] = combine(to(_mm512_shuffle_i32x4(x, y, 0x88)), to(_mm512_shuffle_i32x4(x, y, 0xdd)));
  }
  const __m512i x = of(c[0]), y = of(c[1]);
  return combine(to(_mm512_shuffle_i32x4(x, y, 0x88)), to(_mm512_shuffle_i32x4(x, y, 0xdd)));
#else
  F lanes[kLanes];
  SGL_UNROLL for (int i = 0; i < kLanes; ++i) lanes[i] = as_float(rows[i]);
  transpose(lanes);
  I all = bits(lanes[0]);
  SGL_UNROLL for (int i = 1; i < kLanes; ++i) all = combine(all, bits(lanes[i]));
  return all;
#endif
}

constexpr int kQuads = kLanes / 4;  // of 128 bits

// Quad j of x[i] becomes quad i of x[j]; of 8 lanes there are two, of 4 lanes one.
SGL_INLINE void transpose_quads(I (&x)[kQuads]) {
#if defined(__AVX512F__)
  __m512i r[4], t[4];
  SGL_UNROLL for (int i = 0; i < 4; ++i) r[i] = reinterpret_cast<__m512i>(x[i]);
  SGL_UNROLL for (int i = 0; i < 2; ++i) {
    t[2 * i] = _mm512_shuffle_i32x4(r[2 * i], r[2 * i + 1], 0x88);  // quads 0 and 2 of both
    t[2 * i + 1] = _mm512_shuffle_i32x4(r[2 * i], r[2 * i + 1], 0xdd);
  }
  SGL_UNROLL for (int i = 0; i < 2; ++i) {
    x[i] = reinterpret_cast<I>(_mm512_shuffle_i32x4(t[i], t[i + 2], 0x88));
    x[i + 2] = reinterpret_cast<I>(_mm512_shuffle_i32x4(t[i], t[i + 2], 0xdd));
  }
#elif defined(__AVX2__)
  const __m256i a = reinterpret_cast<__m256i>(x[0]), b = reinterpret_cast<__m256i>(x[1]);
  x[0] = reinterpret_cast<I>(_mm256_permute2x128_si256(a, b, 0x20));
  x[1] = reinterpret_cast<I>(_mm256_permute2x128_si256(a, b, 0x31));
#endif
}

}  // namespace SGL_ISA
}  // namespace sgl_kernels
