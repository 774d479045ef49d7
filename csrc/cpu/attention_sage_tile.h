// Register tiles on bytes: 4 products of an unsigned and a signed byte per 32-bit lane, summed exactly.
#pragma once

#include "attention_blocked.h"

namespace sgl_kernels::attention {
namespace {

SGL_INLINE I splat_bits(uint32_t x) { return I{} + static_cast<int32_t>(x); }

// sum + 4 products of unsigned bytes u and signed bytes s, in every lane.
SGL_INLINE I dot_bytes(I sum, I u, I s) {
#if defined(SGL_KERNELS_EMULATED) && defined(__AVX512VNNI__)
  return reinterpret_cast<I>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(u),
                                                 reinterpret_cast<__m512i>(s)));
#elif defined(__AVX512VNNI__)
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));  // the intrinsic made gcc 12 copy registers (481 -> 727)
  return sum;
#else
  typedef int16_t S __attribute__((vector_size(4 * kLanes)));
  const S even_u = reinterpret_cast<S>(u & 0x00ff00ff), odd_u = reinterpret_cast<S>((u >> 8) & 0x00ff00ff);
  const S all = reinterpret_cast<S>(s);
  const S odd_s = all >> 8, even_s = (all << 8) >> 8;
#if defined(__AVX2__)
  const __m256i even = _mm256_madd_epi16(reinterpret_cast<__m256i>(even_u), reinterpret_cast<__m256i>(even_s));
  const __m256i odd = _mm256_madd_epi16(reinterpret_cast<__m256i>(odd_u), reinterpret_cast<__m256i>(odd_s));
  return sum + reinterpret_cast<I>(even) + reinterpret_cast<I>(odd);
#elif defined(__x86_64__)
  const __m128i even = _mm_madd_epi16(reinterpret_cast<__m128i>(even_u), reinterpret_cast<__m128i>(even_s));
  const __m128i odd = _mm_madd_epi16(reinterpret_cast<__m128i>(odd_u), reinterpret_cast<__m128i>(odd_s));
  return sum + reinterpret_cast<I>(even) + reinterpret_cast<I>(odd);
#else
  // A product of a byte and a signed byte fits 16 bits, but two of them may not: add in 32.
  const I even = reinterpret_cast<I>(even_u * even_s), odd = reinterpret_cast<I>(odd_u * odd_s);
  return sum + ((even << 16) >> 16) + (even >> 16) + ((odd << 16) >> 16) + (odd >> 16);
#endif
#endif
}

// Scores of one tile of keys to memory: float(K8 Q8) * key scale * query scale.
template <int ROWS, int NV>
__attribute__((noinline)) void byte_score_tile(const uint32_t* k, size_t stride, const float* q, int depth,
                                               const int32_t* offset, const float* key_scale, const F* query_scale,
                                               float* scores, F* highest) {
  const uint32_t* base[4] = {k, k + 3 * stride, k + 6 * stride, k + 9 * stride};
  I acc[ROWS][NV];
  SGL_UNROLL for (int i = 0; i < ROWS; ++i) {
    SGL_UNROLL for (int j = 0; j < NV; ++j) acc[i][j] = splat_bits(static_cast<uint32_t>(offset[i]));
  }
#pragma GCC unroll 1
  for (int e = 0; e < depth; ++e) {
    I qv[NV];
    SGL_UNROLL for (int j = 0; j < NV; ++j) qv[j] = load<I>(q + (static_cast<size_t>(e) * NV + j) * kLanes);
    SGL_UNROLL for (int i = 0; i < ROWS; ++i) {
      const I kv = splat_bits(base[i / 3][static_cast<size_t>(i % 3) * stride + e]);
      SGL_UNROLL for (int j = 0; j < NV; ++j) acc[i][j] = dot_bytes(acc[i][j], qv[j], kv);
    }
  }
  SGL_UNROLL for (int i = 0; i < ROWS; ++i) {
    SGL_UNROLL for (int j = 0; j < NV; ++j) {
      const F s = __builtin_convertvector(acc[i][j], F) * (query_scale[j] * key_scale[i]);
      store(scores + (i * NV + j) * kLanes, s);
      highest[j] = max(highest[j], s);
    }
  }
}

// O^T += weight * float(V8^T P8), or = where it is the panel's first.
template <int GROUP, int NV>
__attribute__((noinline)) void byte_value_tile(const uint32_t* v, const uint32_t* p, int depth, const F* weight,
                                               bool first, float* out) {
  I acc[GROUP][NV];
  SGL_UNROLL for (int i = 0; i < GROUP; ++i) SGL_UNROLL for (int j = 0; j < NV; ++j) acc[i][j] = I{};
#pragma GCC unroll 1
  for (int u = 0; u < depth; ++u) {
    I pv[NV];
    SGL_UNROLL for (int j = 0; j < NV; ++j) pv[j] = load<I>(p + (static_cast<size_t>(u) * NV + j) * kLanes);
    SGL_UNROLL for (int i = 0; i < GROUP; ++i) {
      const I vv = splat_bits(v[static_cast<size_t>(u) * GROUP + i]);
      SGL_UNROLL for (int j = 0; j < NV; ++j) acc[i][j] = dot_bytes(acc[i][j], pv[j], vv);
    }
  }
  SGL_UNROLL for (int i = 0; i < GROUP; ++i) {
    SGL_UNROLL for (int j = 0; j < NV; ++j) {
      float* o = out + (i * NV + j) * kLanes;
      const F x = __builtin_convertvector(acc[i][j], F) * weight[j];
      store(o, first ? x : x + load<F>(o));
    }
  }
}

template <int NV>
void accumulate_bytes(const uint32_t* v, size_t block_units, int unit0, int units, const uint32_t* p, const F* weight,
                      bool first, float* out, int channels) {
  for (int c = 0; c < channels;) {
    const int group = channel_group(channels - c);
    const uint32_t* vc = v + static_cast<size_t>(c) * block_units + static_cast<size_t>(unit0) * group;
    float* oc = out + static_cast<size_t>(c) * NV * kLanes;
    if (group == 6) byte_value_tile<6, NV>(vc, p, units, weight, first, oc);
    if (group == 4) byte_value_tile<4, NV>(vc, p, units, weight, first, oc);
    if (group == 2) byte_value_tile<2, NV>(vc, p, units, weight, first, oc);
    c += group;
  }
}

// Scores to unsigned bytes 255 * 2^(score - highest), 4 keys to a lane's word; returns their sums.
template <int NV>
void weights_to_bytes(const float* scores, int units, const F* highest, uint32_t* to, F* sums) {
  // Adding 1.5 * 2^23 leaves the rounded byte in the low bits of 0x4b4000xx; the constants cancel modulo 2^32.
  constexpr uint32_t kBase = 0x4b400000u;
  constexpr uint32_t kBias = kBase + (kBase << 8) + (kBase << 16) + (kBase << 24);
  const F magic = splat(12582912.0f);
  I total[NV];
  F top[NV];
  SGL_UNROLL for (int j = 0; j < NV; ++j) {
    total[j] = I{};
    top[j] = highest[j] - splat(7.99435344f);  // log2 255
  }
  for (int u = 0; u < units; ++u) {
    SGL_UNROLL for (int j = 0; j < NV; ++j) {
      U word{};
      SGL_UNROLL for (int i = 0; i < 4; ++i) {
        const F s = load<F>(scores + (static_cast<size_t>(4 * u + i) * NV + j) * kLanes);
        word += reinterpret_cast<U>(exp2<3>(s - top[j]) + magic) << (8 * i);
      }
      const I bytes = reinterpret_cast<I>(word - kBias);
      total[j] = dot_bytes(total[j], bytes, splat_bits(0x01010101u));
      store(to + (static_cast<size_t>(u) * NV + j) * kLanes, bytes);
    }
  }
  SGL_UNROLL for (int j = 0; j < NV; ++j) sums[j] = __builtin_convertvector(total[j], F);
}

}  // namespace
}  // namespace sgl_kernels::attention
