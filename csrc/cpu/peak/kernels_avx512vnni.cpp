// The ceiling of 8-bit integer dot products.
#include <immintrin.h>

#include "peak/peak.h"

namespace sgl_kernels {

double peak_int8_avx512vnni() {
  constexpr int kChains = 12;  // two ports times a latency of five or six
  const __m512i a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(-1);
  int sink = 0;
  const double rate = best_rate(
      [&](int rounds) {
        __m512i acc[kChains];
#pragma GCC unroll 12
        for (int i = 0; i < kChains; ++i) acc[i] = _mm512_set1_epi32(i);
        // Assembly, because gcc copied and spilled the intrinsic's accumulators, which halved the rate.
        for (int r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
          for (int i = 0; i < kChains; ++i) asm("vpdpbusd %2, %1, %0" : "+v"(acc[i]) : "v"(a), "v"(b));
        }
#pragma GCC unroll 12
        for (int i = 0; i < kChains; ++i) sink ^= _mm512_cvtsi512_si32(acc[i]);
      },
      kChains * 128.0);
  return sink == 0x7fffffff ? 0.0 : rate;
}

}  // namespace sgl_kernels
