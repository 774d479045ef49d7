// The float32 ceiling with AVX2 and FMA, and the one of byte products without VNNI.
#include <immintrin.h>

#include "peak/peak.h"

namespace sgl_kernels {

double peak_float32_avx2() {
  constexpr int kChains = 12;  // two ports times a latency of four needs eight; twelve fit in sixteen registers
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  float sink = 0.0f;
  const double rate = best_rate(
      [&](int rounds) {
        __m256 acc[kChains];
#pragma GCC unroll 12
        for (int i = 0; i < kChains; ++i) acc[i] = _mm256_set1_ps(static_cast<float>(i));
        for (int r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
          for (int i = 0; i < kChains; ++i) acc[i] = _mm256_fmadd_ps(acc[i], a, b);
        }
#pragma GCC unroll 12
        for (int i = 0; i < kChains; ++i) sink += _mm256_cvtss_f32(acc[i]);
      },
      kChains * 16.0);
  return sink == -1.0f ? 0.0 : rate;  // uses the sums, or the compiler would drop the loop
}

// Without vpdpbusd a byte product is vpmaddubsw (sums of two, in 16 bits), vpmaddwd by ones (sums of four, in 32)
// and vpaddd. Assembly, because gcc copied and spilled the intrinsics' accumulators.
double peak_int8_avx2() {
  constexpr int kChains = 8;  // the products do not depend on each other, the sums have a latency of one
  const __m256i a = _mm256_set1_epi8(1), b = _mm256_set1_epi8(-1), ones = _mm256_set1_epi16(1);
  int sink = 0;
  const double rate = best_rate(
      [&](int rounds) {
        __m256i acc[kChains], product;
#pragma GCC unroll 8
        for (int i = 0; i < kChains; ++i) acc[i] = _mm256_set1_epi32(i);
        for (int r = 0; r < rounds; ++r) {
#pragma GCC unroll 8
          for (int i = 0; i < kChains; ++i) {
            asm("vpmaddubsw %3, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"
                : "+x"(acc[i]), "=&x"(product)
                : "x"(a), "x"(b), "x"(ones));
          }
        }
#pragma GCC unroll 8
        for (int i = 0; i < kChains; ++i) sink ^= _mm256_cvtsi256_si32(acc[i]);
      },
      kChains * 64.0);
  return sink == 0x7fffffff ? 0.0 : rate;
}

}  // namespace sgl_kernels
