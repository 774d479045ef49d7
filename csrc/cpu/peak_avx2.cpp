// The float32 ceiling with AVX2 and FMA.
#include <immintrin.h>

#include "peak.h"

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

}  // namespace sgl_kernels
