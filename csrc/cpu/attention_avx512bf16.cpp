// Attention on bf16 with vdpbf16ps: two products per lane and instruction, accumulated in float. Other types, and
// decoding (bound by memory), are the AVX-512 kernels.
#include "attention_blocked.h"

namespace sgl_kernels::attention {
namespace {

struct DotBf16 {
  static constexpr int kUnit = 2;
  static constexpr int kDegree = 3;  // an error of 7.5e-5, beside 2e-3 of rounding weights to bf16

  static SGL_INLINE F dot(F sum, F a, F b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }

  // Lane i: bf16(a[i]) in the low half, bf16(b[i]) in the high half.
  static SGL_INLINE F pair(F a, F b) {
    typedef int16_t S __attribute__((vector_size(64)));
    const S order = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));
    return reinterpret_cast<F>(_mm512_permutexvar_epi16(reinterpret_cast<__m512i>(order), both));
  }

  // The first n channels of a row as pairs; an odd last channel is paired with 0.
  static SGL_INLINE F load_pairs(const char* p, int n) {
    const __mmask32 m = static_cast<__mmask32>((1ull << n) - 1);
    return reinterpret_cast<F>(_mm512_maskz_loadu_epi16(m, p));
  }

  // Channels c .. c+16 of two rows of V as pairs along the keys; second may be null.
  static SGL_INLINE F interleave(const char* first, const char* second, int c, int channels) {
    const int n = channels - c < kLanes ? channels - c : kLanes;
    const __mmask16 m = static_cast<__mmask16>((1u << n) - 1);
    const size_t offset = static_cast<size_t>(c) * 2;
    const U low = widen(reinterpret_cast<H>(_mm256_maskz_loadu_epi16(m, first + offset)));
    const __mmask16 m2 = second == nullptr ? 0 : m;
    const U high = widen(reinterpret_cast<H>(_mm256_maskz_loadu_epi16(m2, second == nullptr ? first : second + offset)));
    return as_float(low | (high << 16));
  }
};

struct DotBf16WithLse : DotBf16 {  // lse is a float32 result: its sums need the full exponential
  static constexpr int kDegree = 5;
};

size_t scratch_bytes(const Problem& p, int32_t rows) {
  return p.type == Type::bf16 ? blocked_scratch<DotBf16>(p, rows) : kAvx512.scratch_bytes(p, rows);
}

void run(const Problem& p, const Task& task, char* scratch) {
  if (p.type != Type::bf16) return kAvx512.run(p, task, scratch);
  if (p.lse == nullptr) return run_blocked<DotBf16, Type::bf16>(p, task, scratch);
  run_blocked<DotBf16WithLse, Type::bf16>(p, task, scratch);
}

size_t decode_bytes(const Problem& p, int32_t rows) { return kAvx512.decode_scratch_bytes(p, rows); }
void decode(const Problem& p, const Task& task, char* scratch) { kAvx512.decode(p, task, scratch); }

void combine(const Problem& parts, const Problem& whole, int32_t splits, int64_t row0, int64_t row1) {
  kAvx512.combine(parts, whole, splits, row0, row1);
}

}  // namespace

const Kernels kAvx512Bf16 = {kPanel, scratch_bytes, run, decode_bytes, decode, combine};

}  // namespace sgl_kernels::attention
