// Register tiles on bytes: 4 products of an unsigned and a signed byte per 32-bit lane, summed exactly.
#pragma once

#include "attention/blocked-inl.h"
#include "simd/bytes-inl.h"

namespace sgl_kernels::attention {
namespace {

// Scores of one tile of keys to memory: float(K8 Q8) * key scale * query scale.
template <int ROWS, int NV>
__attribute__((noinline)) void byte_score_tile(const uint32_t* k, size_t stride, const float* q, int depth,
                                               const int32_t* offset, const float* key_scale, const F* query_scale,
                                               float* scores, F* highest) {
  const uint32_t* base[4] = {k, k + 3 * stride, k + 6 * stride, k + 9 * stride};
  I acc[ROWS][NV];
  SGL_UNROLL for (int i = 0; i < ROWS; ++i) {
    SGL_UNROLL for (int j = 0; j < NV; ++j) acc[i][j] = splat_int(offset[i]);
  }
#pragma GCC unroll 1
  for (int e = 0; e < depth; ++e) {
    I qv[NV];
    SGL_UNROLL for (int j = 0; j < NV; ++j) qv[j] = load<I>(q + (static_cast<size_t>(e) * NV + j) * kLanes);
    SGL_UNROLL for (int i = 0; i < ROWS; ++i) {
      const I kv = splat_int(base[i / 3][static_cast<size_t>(i % 3) * stride + e]);
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
      const I vv = splat_int(v[static_cast<size_t>(u) * GROUP + i]);
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
            interleave_bytes<true>(nearest(w[0]), nearest(w[1]), nearest(w[2]), nearest(w[3])));
    }
  }
  SGL_UNROLL for (int j = 0; j < NV; ++j) sums[j] = total[j];
}

}  // namespace
}  // namespace sgl_kernels::attention
