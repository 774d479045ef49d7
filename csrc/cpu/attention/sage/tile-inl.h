// Register tiles on bytes: 4 products of an unsigned and a signed byte per 32-bit lane, summed exactly.
#pragma once

#include "attention/blocked-inl.h"

namespace sgl_kernels::attention {
namespace {

SGL_INLINE I splat_bits(uint32_t x) { return I{} + static_cast<int32_t>(x); }

// sum + 4 products of unsigned bytes u and signed bytes s, in every lane.
SGL_INLINE I dot_bytes(I sum, I u, I s) {
#if defined(SGL_KERNELS_EMULATED) && defined(__AVX512VNNI__)
  return reinterpret_cast<I>(
      _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(u), reinterpret_cast<__m512i>(s)));
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
  // Kept in registers: `highest` might be any of the scores, and through memory each tile waited 6 times for the last
  // one.
  F scale[NV], top[NV];
  SGL_UNROLL for (int j = 0; j < NV; ++j) {
    scale[j] = query_scale[j];
    top[j] = highest[j];
  }
  SGL_UNROLL for (int i = 0; i < ROWS; ++i) {
    const F by_key = splat(key_scale[i]);
    SGL_UNROLL for (int j = 0; j < NV; ++j) {
      const F s = __builtin_convertvector(acc[i][j], F) * (scale[j] * by_key);
      store(scores + (i * NV + j) * kLanes, s);
      top[j] = max(top[j], s);
    }
  }
  SGL_UNROLL for (int j = 0; j < NV; ++j) highest[j] = top[j];
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

SGL_INLINE I to_int(F x) {  // nearest, |x| < 2^22
#if defined(__AVX512F__)
  return reinterpret_cast<I>(_mm512_cvtps_epi32(x));
#elif defined(__AVX2__)
  return reinterpret_cast<I>(_mm256_cvtps_epi32(x));
#else
  return reinterpret_cast<I>(reinterpret_cast<U>(x + splat(12582912.0f)) - 0x4b400000u);
#endif
}

// Byte i of a lane: that lane of vector i, which fits a byte, unsigned or signed.
template <bool kUnsigned>
SGL_INLINE I interleave_bytes(I a, I b, I c, I d) {
#if defined(__AVX2__)
  // Within 128 bits the packed bytes are a[0..3] b[0..3] c[0..3] d[0..3].
  const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
#endif
#if defined(__AVX512F__)
  const __m512i low = _mm512_packs_epi32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
  const __m512i high = _mm512_packs_epi32(reinterpret_cast<__m512i>(c), reinterpret_cast<__m512i>(d));
  const __m512i packed = kUnsigned ? _mm512_packus_epi16(low, high) : _mm512_packs_epi16(low, high);
  return reinterpret_cast<I>(_mm512_shuffle_epi8(packed, _mm512_broadcast_i32x4(order)));
#elif defined(__AVX2__)
  const __m256i low = _mm256_packs_epi32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b));
  const __m256i high = _mm256_packs_epi32(reinterpret_cast<__m256i>(c), reinterpret_cast<__m256i>(d));
  const __m256i packed = kUnsigned ? _mm256_packus_epi16(low, high) : _mm256_packs_epi16(low, high);
  return reinterpret_cast<I>(_mm256_shuffle_epi8(packed, _mm256_broadcastsi128_si256(order)));
#else
  if constexpr (kUnsigned) return a | b << 8 | c << 16 | d << 24;
  const U x = reinterpret_cast<U>(a) & 0xff, y = reinterpret_cast<U>(b) & 0xff, z = reinterpret_cast<U>(c) & 0xff;
  return reinterpret_cast<I>(x | y << 8 | z << 16 | reinterpret_cast<U>(d) << 24);
#endif
}

// 2^t, to a relative 7.5e-5.
SGL_INLINE F exp2_near(F t) {
#if defined(__AVX512F__)
  // scalef takes the floor of its exponent: with a polynomial on [0, 1) the whole part is not needed by itself.
  const F f = _mm512_reduce_ps(t, 1);
  F p = splat(0.0780245215f);
  p = p * f + splat(0.2260672f);
  p = p * f + splat(0.6958335f);
  p = p * f + splat(0.9999252f);
  return _mm512_scalef_ps(p, t);
#else
  return exp2<3>(t);
#endif
}

// Scores to unsigned bytes 255 * 2^(2 score - 2 highest), 4 keys to a lane's word, and the sums before rounding. Of
// bytes the sums would lose many small weights together, and their share would go to the largest: with them left in the
// sum, those keys count as V's mean.
template <int NV>
void weights_to_bytes(const float* scores, int units, const F* highest, uint32_t* to, F* sums) {
  F total[NV], top[NV];
  SGL_UNROLL for (int j = 0; j < NV; ++j) {
    total[j] = F{};
    top[j] = highest[j];
  }
  for (int u = 0; u < units; ++u) {
    SGL_UNROLL for (int j = 0; j < NV; ++j) {
      F w[4];
      SGL_UNROLL for (int i = 0; i < 4; ++i) {
        const F t = load<F>(scores + (static_cast<size_t>(4 * u + i) * NV + j) * kLanes) - top[j];
        w[i] = exp2_near(t * 2.0f + 7.99435344f);  // log2 255
      }
      total[j] += (w[0] + w[1]) + (w[2] + w[3]);
      store(to + (static_cast<size_t>(u) * NV + j) * kLanes,
            interleave_bytes<true>(to_int(w[0]), to_int(w[1]), to_int(w[2]), to_int(w[3])));
    }
  }
  SGL_UNROLL for (int j = 0; j < NV; ++j) sums[j] = total[j];
}

}  // namespace
}  // namespace sgl_kernels::attention
