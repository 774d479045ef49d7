// The ceiling of bfloat16 dot products.
#include <immintrin.h>

#include "peak/peak.h"

namespace sgl_kernels {

double peak_bfloat16_avx512bf16() {
  constexpr int kChains = 12;  // two ports times a latency of five or six
  const __m512i a = _mm512_set1_epi16(0x3f80), b = _mm512_set1_epi16(0x3a80);  // 1 and 2^-10
  float sink = 0.0f;
  const double rate = best_rate(
      [&](int rounds) {
        __m512 acc[kChains];
#pragma GCC unroll 12
        for (int i = 0; i < kChains; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
        // Assembly, because gcc copied and spilled the intrinsic's accumulators, which halved the rate.
        for (int r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
          for (int i = 0; i < kChains; ++i) asm("vdpbf16ps %2, %1, %0" : "+v"(acc[i]) : "v"(a), "v"(b));
        }
#pragma GCC unroll 12
        for (int i = 0; i < kChains; ++i) sink += _mm512_cvtss_f32(acc[i]);
      },
      kChains * 64.0);
  return sink == -1.0f ? 0.0 : rate;
}

}  // namespace sgl_kernels
