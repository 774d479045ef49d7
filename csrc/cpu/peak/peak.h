// How fast one thread can issue the arithmetic that the kernels are made of: the ceiling of the benchmarks.
#pragma once

#include <ctime>

namespace sgl_kernels {

// Operations per nanosecond (GFLOP/s) of one core; each only exists where its file can be compiled.
double peak_float32_avx2();
double peak_int8_avx2();  // vpmaddubsw, vpmaddwd and vpaddd: 32 products and 32 sums
double peak_float32_avx512();
double peak_bfloat16_avx512bf16();  // vdpbf16ps: 32 products and 32 sums
double peak_int8_avx512vnni();      // vpdpbusd: 64 products and 64 sums

struct Peak {
  double (*rate)();
};

inline double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// The best of many short bursts: a ceiling is what is possible. CPU time, so that other processes do not count,
// and bursts of 1 ms, so that one without an interruption is among them.
template <typename Burst>
double best_rate(Burst burst, double operations_per_round) {
  constexpr int kRounds = 20000;
  double best = 0.0;
  const double end = thread_seconds() + 0.15;
  while (thread_seconds() < end) {
    const double start = thread_seconds();
    burst(kRounds);
    const double rate = operations_per_round * kRounds / (thread_seconds() - start) / 1e9;
    best = rate > best ? rate : best;
  }
  return best;
}

}  // namespace sgl_kernels
