// Quantised attention: Q and K as bytes with K smoothed, weights and V as bytes or floats.
//
// K loses its mean over the keys (softmax does not see it) and its channels are balanced against Q's: channel c of K
// is divided by sqrt(its range / the mean range) and Q multiplied by it. Q and K then have one scale per token. Weights
// are bytes relative to the block's highest score; V loses its mean and has one scale per channel.
#pragma once

#include "attention_sage_args.h"
#include "attention_sage_tile.h"

namespace sgl_kernels::attention {
namespace {

// A key head's quantised K and V. Vectors over channels are padded to whole registers with zeros.
struct SageHead {
  float *key_mean, *key_factor, *key_inverse, *value_mean, *value_scale, *value_inverse;
  uint32_t* keys;       // [key][element]: 4 signed bytes
  float* key_scale;     // [key]
  int32_t* key_offset;  // [key]: -128 * sum of the bytes, because Q is stored with 128 added
  uint32_t* values;     // [block][channel group][4 keys][channel]
  int32_t block, blocks, elements, channels;
  size_t bytes;
};

static inline SageHead sage_head(const Problem& p, char* memory) {
  SageHead h{};
  h.block = min_int(192, round_up(max_int(p.sk, 1), kKeyAlign));
  h.blocks = (p.sk + h.block - 1) / h.block;
  h.elements = (p.d + 3) / 4;
  h.channels = round_up(p.dv, 2);
  size_t at = 0;
  auto take = [&](size_t words) {
    char* start = memory + at;
    at += (words * 4 + 63) / 64 * 64;
    return start;
  };
  const size_t keys = static_cast<size_t>(h.block) * h.blocks;
  const int32_t d = round_up(p.d, kLanes), dv = round_up(p.dv, kLanes);
  h.key_mean = reinterpret_cast<float*>(take(d));
  h.key_factor = reinterpret_cast<float*>(take(d));
  h.key_inverse = reinterpret_cast<float*>(take(d));
  h.value_mean = reinterpret_cast<float*>(take(dv));
  h.value_scale = reinterpret_cast<float*>(take(dv));
  h.value_inverse = reinterpret_cast<float*>(take(dv));
  h.keys = reinterpret_cast<uint32_t*>(take(keys * h.elements));
  h.key_scale = reinterpret_cast<float*>(take(keys));
  h.key_offset = reinterpret_cast<int32_t*>(take(keys));
  h.values = reinterpret_cast<uint32_t*>(take(keys / 4 * h.channels));
  h.bytes = at;
  return h;
}

static inline SageSizes sage_sizes(const Problem& p) {
  const SageHead h = sage_head(p, nullptr);
  return {h.block, h.blocks, h.bytes};
}

SGL_INLINE F largest(F a, F b) { return a > b ? a : b; }
SGL_INLINE F magnitude(F x) { return as_float(bits(x) & 0x7fffffff); }
SGL_INLINE I to_int(F x) {  // nearest, |x| < 2^22
  return reinterpret_cast<I>(x + splat(12582912.0f)) - 0x4b400000;
}

// Mean over the rows and the largest distance from it, per channel. Returns whether all values are finite.
template <Type kType>
bool channel_ranges(const char* rows, int64_t stride, int count, int channels, float* mean, float* range) {
  bool finite = true;
  for (int c = 0; c < channels; c += kLanes) {
    const int n = min_int(kLanes, channels - c);
    const char* row = rows + static_cast<size_t>(c) * type_size(kType);
    F sum{}, high = splat(-3.4e38f), low = splat(3.4e38f);
    for (int r = 0; r < count; ++r, row += stride) {
      const F x = n == kLanes ? load_as_float<kType>(row) : load_as_float<kType>(row, n);
      sum += x;
      high = max(high, x);
      low = -max(-low, -x);
    }
    const F m = sum / static_cast<float>(count);
    finite &= !any((m - m != F{}) | (high - low - (high - low) != F{}));
    store(mean + c, m);
    store(range + c, largest(high - m, m - low));
  }
  return finite;
}

template <Type kType>
bool measure_head(const Problem& p, int32_t batch, int32_t kv_head, char* memory) {
  const SageHead h = sage_head(p, memory);
  const Sequence s = sequence_of(p, batch);
  const char *k = s.k + kv_head * p.k.head, *v = s.v + kv_head * p.v.head;
  bool finite = channel_ranges<kType>(k, p.k.seq, p.sk, p.d, h.key_mean, h.key_factor);
  finite &= channel_ranges<kType>(v, p.v.seq, p.sk, p.dv, h.value_mean, h.value_scale);
  float average = 0;
  for (int c = 0; c < p.d; ++c) average += h.key_factor[c];
  average /= static_cast<float>(p.d);
  for (int c = 0; c < round_up(p.d, kLanes); ++c) {
    const bool used = c < p.d && h.key_factor[c] > 1e-3f * average;
    h.key_factor[c] = used ? __builtin_sqrtf(h.key_factor[c] / average) : 1.0f;
    h.key_inverse[c] = 1.0f / h.key_factor[c];
  }
  for (int c = 0; c < round_up(p.dv, kLanes); ++c) {
    const float range = c < p.dv ? h.value_scale[c] : 0.0f;
    h.value_scale[c] = range / 127.0f;
    h.value_inverse[c] = range > 1e-30f ? 127.0f / range : 0.0f;
  }
  return finite;
}

// Bytes (plus `add`) of one row (x - mean) * factor; returns the scale. sum: of the bytes. mean may be null.
template <Type kType>
SGL_INLINE float quantise_row(const char* row, int channels, const float* mean, const float* factor, float* line,
                              uint8_t* to, int add, int32_t* sum) {
  F top{}, poison{};
  for (int c = 0; c < channels; c += kLanes) {
    const int n = min_int(kLanes, channels - c);
    const char* from = row + static_cast<size_t>(c) * type_size(kType);
    F x = n == kLanes ? load_as_float<kType>(from) : load_as_float<kType>(from, n);
    if (mean != nullptr) x = x - load<F>(mean + c);
    x = x * load<F>(factor + c);
    store(line + c, x);
    top = largest(magnitude(x), top);
    poison += x * 0.0f;  // NaN where the row has a NaN or an infinity
  }
  const float range = max_lanes(top);
  const F inverse = splat(range > 1e-30f ? 127.0f / range : 0.0f);
  typedef int8_t Bytes __attribute__((vector_size(kLanes)));
  I total{};
  for (int c = 0; c < channels; c += kLanes) {
    const I y = to_int(load<F>(line + c) * inverse);
    total += y;
    store(to + c, __builtin_convertvector(y + add, Bytes));
  }
  if (sum != nullptr) {
    *sum = 0;
    for (int i = 0; i < kLanes; ++i) *sum += total[i];
  }
  return range / 127.0f + sum_lanes(poison);
}

constexpr int kMostChannels = 1024;  // of the buffers on the stack; the op sends larger heads to the exact kernels

template <Type kType>
void quantise_block(const Problem& p, int32_t batch, int32_t kv_head, int32_t block, char* memory) {
  const SageHead h = sage_head(p, memory);
  const Sequence s = sequence_of(p, batch);
  const int32_t key0 = block * h.block, count = min_int(h.block, p.sk - key0);
  float line[kMostChannels + kLanes];
  uint8_t bytes[kMostChannels + kLanes];
  __builtin_memset(bytes, 0, sizeof(bytes));
  const char* k = s.k + kv_head * p.k.head + key0 * p.k.seq;
  for (int r = 0; r < h.block; ++r) {
    uint32_t* to = h.keys + static_cast<size_t>(key0 + r) * h.elements;
    int32_t sum = 0;
    if (r < count) {
      h.key_scale[key0 + r] =
          quantise_row<kType>(k + r * p.k.seq, p.d, h.key_mean, h.key_inverse, line, bytes, 0, &sum);
      __builtin_memcpy(to, bytes, static_cast<size_t>(h.elements) * 4);
    } else {
      h.key_scale[key0 + r] = 0;
      __builtin_memset(to, 0, static_cast<size_t>(h.elements) * 4);
    }
    h.key_offset[key0 + r] = -128 * sum;
  }
  const char* v = s.v + kv_head * p.v.head + key0 * p.v.seq;
  float* values = reinterpret_cast<float*>(h.values + static_cast<size_t>(block) * (h.block / 4) * h.channels);
  for (int u = 0; u < (count + 3) / 4; ++u) {
    for (int c = 0; c < p.dv; c += kLanes) {
      const int n = min_int(kLanes, p.dv - c);
      const F mean = load<F>(h.value_mean + c), inverse = load<F>(h.value_inverse + c);
      U word{};
      for (int i = 0; i < min_int(4, count - 4 * u); ++i) {
        const char* from = v + (4 * u + i) * p.v.seq + static_cast<size_t>(c) * type_size(kType);
        const F x = n == kLanes ? load_as_float<kType>(from) : load_as_float<kType>(from, n);
        word |= (reinterpret_cast<U>(to_int((x - mean) * inverse)) & 0xff) << (8 * i);
      }
      store(line + c, word);
    }
    scatter_channels(line, h.channels, static_cast<size_t>(h.block) / 4, u, values);
  }
}

// One panel's queries as bytes with 128 added, transposed like pack_queries; their scales, per lane.
template <Type kType>
void quantise_queries(const Problem& p, const SageHead& h, const char* heads, RowWalk walk, const Panel& panel,
                      float* to, F* scales) {
  const int nv = panel.vectors;
  const float scale = p.scale * kLog2e;  // its sign stays on the scale: scores are products of floats here
  float line[kMostChannels + kLanes];
  uint8_t bytes[kLanes][kMostChannels + 4 * kLanes];
  for (int j = 0; j < nv; ++j) {
    const int rows = min_int(kLanes, panel.rows - j * kLanes);
    scales[j] = F{};
    __builtin_memset(bytes, 128, sizeof(bytes));
    for (int i = 0; i < rows; ++i, walk.next()) {
      const char* row = heads + walk.group_head * p.q.head + walk.query * p.q.seq;
      scales[j][i] = scale * quantise_row<kType>(row, p.d, nullptr, h.key_factor, line, bytes[i], 128, nullptr);
    }
    for (int e = 0; e < h.elements; e += kLanes) {
      F block[kLanes];
      for (int i = 0; i < kLanes; ++i) block[i] = load<F>(bytes[i] + 4 * e);
      transpose(block);
      const int n = min_int(kLanes, h.elements - e);
      for (int i = 0; i < n; ++i) store(to + (static_cast<size_t>(e + i) * nv + j) * kLanes, block[i]);
    }
  }
}

}  // namespace
}  // namespace sgl_kernels::attention
