// The float32 ceiling with AVX-512.
#include <immintrin.h>

#include "peak/peak.h"

namespace sgl_kernels {

double peak_float32_avx512() {
  constexpr int kChains = 24;
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  float sink = 0.0f;
  const double rate = best_rate(
      [&](int rounds) {
        __m512 acc[kChains];
#pragma GCC unroll 24
        for (int i = 0; i < kChains; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
        for (int r = 0; r < rounds; ++r) {
#pragma GCC unroll 24
          for (int i = 0; i < kChains; ++i) acc[i] = _mm512_fmadd_ps(acc[i], a, b);
        }
#pragma GCC unroll 24
        for (int i = 0; i < kChains; ++i) sink += _mm512_cvtss_f32(acc[i]);
      },
      kChains * 32.0);
  return sink == -1.0f ? 0.0 : rate;
}

}  // namespace sgl_kernels
