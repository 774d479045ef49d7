// A square of 32-bit lanes: lane j of row i becomes lane i of row j. For whatever instruction set the includer has; in
// an unnamed namespace, so that each keeps its own copy. V is a vector type of 16, 8 or 4 lanes.
#pragma once

#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // gcc 12's own _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace sgl_kernels {
namespace {

template <class V, int kCount>
inline __attribute__((always_inline)) void transpose(V (&rows)[kCount]) {
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

}  // namespace
}  // namespace sgl_kernels
