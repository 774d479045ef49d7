// Quantised attention: Q and K as bytes with K smoothed, weights and V as bytes or floats.
//
// K loses its mean over the keys (softmax does not see it) and its channels are balanced against Q's: channel c of K
// is divided by sqrt(its range / the mean range) and Q multiplied by it. Q and K then have one scale per token. Weights
// are bytes relative to the block's highest score; V loses its mean and has one scale per channel.
#pragma once

#include "attention/sage/args.h"
#include "attention/sage/tile-inl.h"

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

template <int N>
struct Count {
  static constexpr int value = N;
};

// Wider channels go to the exact kernels: sums of weights up to 2^60 times their values would overflow.
constexpr float kWidest = 0x1p40f;

// Rows on pages of their own are nothing that the processor foresees.
constexpr int kAhead = 12;
SGL_INLINE void prefetch_row(const char* row, int bytes) {
  for (int b = 0; b < bytes; b += 64) __builtin_prefetch(row + b);
  __builtin_prefetch(row + bytes - 1);
}

// The keys that some query sees, as far as bounds and a mask of one row for all queries tell: what hidden ones hold
// must not set the scales of the others.
struct SeenKeys {
  int32_t begin, end, count;
  const char* row;  // of the mask, or null
  const MaskView* mask;

  bool operator()(int32_t key) const {
    return key >= begin && key < end && (row == nullptr || mask_bias(row + key * mask->key, mask->type) != kMinusInf);
  }
};

static inline SeenKeys seen_keys(const Problem& p, const Sequence& s, int32_t batch, int32_t kv_head) {
  const int32_t group = p.heads / p.kv_heads;
  SeenKeys seen{min_int(max_int(0, -s.left), s.sk), 0, 0, nullptr, &p.mask};
  seen.end = max_int(seen.begin, min_int(s.sk, s.sq + s.right));
  if (p.mask.data != nullptr && p.mask.query == 0 && (p.mask.head == 0 || group == 1)) {
    seen.row = p.mask.data + batch * p.mask.batch + int64_t{kv_head} * group * p.mask.head;
  }
  seen.count = seen.end - seen.begin;
  if (seen.row != nullptr) {
    seen.count = 0;
    for (int32_t key = seen.begin; key < seen.end; ++key) seen.count += seen(key);
  }
  return seen;
}

// Mean over the rows and the largest distance from it of V vectors of channels, all in one walk: with the tokens of a
// (batch, seq, head, channel) tensor each row is a page of its own, and a walk for every vector took 10 % of the time.
template <Type kType, int V>
bool strip_ranges(const char* rows, int64_t stride, int count, const SeenKeys& seen, int channels, float* mean,
                  float* range) {
  F sum[V], high[V], low[V], hidden{};
  SGL_UNROLL for (int v = 0; v < V; ++v) {
    sum[v] = F{};
    high[v] = splat(-3.4e38f);
    low[v] = splat(3.4e38f);
  }
  const int last = channels - (V - 1) * kLanes;  // channels of the last vector
  const char* row = rows;
  const int bytes = channels * type_size(kType), ahead = count - kAhead;
  const bool all = seen.count == count;
  for (int r = 0; r < count; ++r, row += stride) {
    if (r < ahead) prefetch_row(row + kAhead * stride, bytes);
    if (!all && !seen(r)) {
      for (int c = 0; c < channels; c += kLanes) {
        const char* from = row + static_cast<size_t>(c) * type_size(kType);
        const bool short_one = channels - c < kLanes;
        hidden += (short_one ? load_as_float<kType>(from, channels - c) : load_as_float<kType>(from)) * 0.0f;
      }
      continue;
    }
    SGL_UNROLL for (int v = 0; v < V; ++v) {
      const char* from = row + static_cast<size_t>(v) * kLanes * type_size(kType);
      const F x = v < V - 1 || last == kLanes ? load_as_float<kType>(from) : load_as_float<kType>(from, last);
      sum[v] += x;
      high[v] = max(high[v], x);
      low[v] = min(low[v], x);
    }
  }
  bool finite = !any(hidden != hidden);
  SGL_UNROLL for (int v = 0; v < V; ++v) {
    if (seen.count == 0) sum[v] = high[v] = low[v] = F{};
    const F m = sum[v] / static_cast<float>(max_int(1, seen.count)), width = high[v] - low[v];
    finite &= !any((m - m != F{}) | !(width < splat(kWidest)));
    store(mean + v * kLanes, m);
    store(range + v * kLanes, max(high[v] - m, m - low[v]));
  }
  return finite;
}

// Returns whether all values are finite, and their ranges below kWidest.
template <Type kType>
bool channel_ranges(const char* rows, int64_t stride, int count, const SeenKeys& seen, int channels, float* mean,
                    float* range) {
  constexpr int kMost = kManyRegisters ? 8 : 4;  // three registers for each vector
  bool finite = true;
  for (int c = 0; c < channels;) {
    const char* strip = rows + static_cast<size_t>(c) * type_size(kType);
    const int n = min_int(kMost * kLanes, channels - c);
    const auto walk = [&](auto vectors) {
      finite &= strip_ranges<kType, decltype(vectors)::value>(strip, stride, count, seen, n, mean + c, range + c);
    };
    switch ((n + kLanes - 1) / kLanes) {
      case 1:
        walk(Count<1>{});
        break;
      case 2:
        walk(Count<2>{});
        break;
      case 3:
        walk(Count<3>{});
        break;
      case 4:
        walk(Count<4>{});
        break;
      case 5:
        walk(Count<kMost == 8 ? 5 : 4>{});
        break;
      case 6:
        walk(Count<kMost == 8 ? 6 : 4>{});
        break;
      case 7:
        walk(Count<kMost == 8 ? 7 : 4>{});
        break;
      default:
        walk(Count<kMost>{});
        break;
    }
    c += n;
  }
  return finite;
}

template <Type kType>
bool measure_head(const Problem& p, int32_t batch, int32_t kv_head, char* memory) {
  const SageHead h = sage_head(p, memory);
  const Sequence s = sequence_of(p, batch);
  const char *k = s.k + kv_head * p.k.head, *v = s.v + kv_head * p.v.head;
  const SeenKeys seen = seen_keys(p, s, batch, kv_head);
  bool finite = channel_ranges<kType>(k, p.k.seq, p.sk, seen, p.d, h.key_mean, h.key_factor);
  finite &= channel_ranges<kType>(v, p.v.seq, p.sk, seen, p.dv, h.value_mean, h.value_scale);
  // Past the last channel ranges and means are 0, so that the factors there are 1 and the scales 0.
  F total{};
  for (int c = 0; c < p.d; c += kLanes) total += load<F>(h.key_factor + c);
  const float average = sum_in_order(total) / static_cast<float>(p.d);
  const F least = splat(1e-3f * average), one = splat(1.0f);
  for (int c = 0; c < p.d; c += kLanes) {
    const F range = load<F>(h.key_factor + c);
    const F factor = range > least ? square_root(range / average) : one;
    store(h.key_factor + c, factor);
    store(h.key_inverse + c, one / factor);
  }
  for (int c = 0; c < p.dv; c += kLanes) {
    const F range = load<F>(h.value_scale + c);
    store(h.value_scale + c, range / 127.0f);
    store(h.value_inverse + c, range > splat(1e-30f) ? 127.0f / range : F{});
  }
  return finite;
}

}  // namespace
}  // namespace sgl_kernels::attention
