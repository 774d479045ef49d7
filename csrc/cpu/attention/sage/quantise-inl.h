// Rows of Q, K and V to bytes. Rows go kLanes at a time, so that what one number says of a row (its range, the sum of
// its bytes) is found for all of them together by one transpose; row by row it took more than the products at 256 rows.
#pragma once

#include "attention/sage/measure-inl.h"

namespace sgl_kernels::attention {
namespace {

// Channels are read four vectors at a time; the last V of 1 to 4 vectors, of which the last one may be short, are known
// to the compiler: with branches for each vector the keys of head_dim 72 took 1.2 times as long.
template <class Body>
SGL_INLINE void with_last_vectors(int channels, Body body) {
  switch ((channels + kLanes - 1) / kLanes % 4) {
    case 1:
      return body(Count<1>{});
    case 2:
      return body(Count<2>{});
    case 3:
      return body(Count<3>{});
    default:
      return body(Count<4>{});
  }
}

// V vectors of a row, (x - mean) * factor, the last of `last` channels and 0 past them.
template <Type kType, bool kCentred, int V>
SGL_INLINE void load_balanced(const char* row, int c, int last, const float* mean, const float* factor, F (&x)[V]) {
  SGL_UNROLL for (int v = 0; v < V; ++v) {
    const int at = c + v * kLanes;
    const char* from = row + static_cast<size_t>(at) * type_size(kType);
    x[v] = v < V - 1 || last == kLanes ? load_as_float<kType>(from) : load_as_float<kType>(from, last);
    if constexpr (kCentred) x[v] = x[v] - load<F>(mean + at);
    x[v] = x[v] * load<F>(factor + at);
  }
}

// The largest |balanced channel| of each row, a lane for each; NaN where a row holds one or an infinity.
template <Type kType, bool kCentred, int V>
SGL_INLINE F row_ranges(const char* const* rows, int count, int channels, const float* mean, const float* factor) {
  const int tail = (channels - 1) / (4 * kLanes) * (4 * kLanes), last = channels - tail - (V - 1) * kLanes;
  I tops[kLanes];
  for (int i = 0; i < count; ++i) {
    // As integers: above every finite magnitude is infinity, and above that NaN.
    I top{};
    for (int c = 0; c < tail; c += 4 * kLanes) {
      F x[4];
      load_balanced<kType, kCentred, 4>(rows[i], c, kLanes, mean, factor, x);
      SGL_UNROLL for (int v = 0; v < 4; ++v) top = larger(magnitude(x[v]), top);
    }
    F x[V];
    load_balanced<kType, kCentred, V>(rows[i], tail, last, mean, factor, x);
    SGL_UNROLL for (int v = 0; v < V; ++v) top = larger(magnitude(x[v]), top);
    tops[i] = top;
  }
  for (int i = count; i < kLanes; ++i) tops[i] = I{};
  const I top = combine_rows(tops, [](I a, I b) { return larger(a, b); });
  return top >= 0x7f800000 ? splat(__builtin_nanf("")) : as_float(top);
}

SGL_INLINE F byte_inverse(F range) { return range > splat(1e-30f) ? 127.0f / range : F{}; }

// V vectors of channels to words of signed bytes, and 0 up to 4 vectors; the bytes' sums are added to total.
template <int V>
SGL_INLINE I to_words(const F (&x)[V], F inverse, I& total) {
  I y[4] = {};
  SGL_UNROLL for (int v = 0; v < V; ++v) {
    y[v] = nearest(x[v] * inverse);
    total += y[v];
  }
  return join_words(y[0], y[1], y[2], y[3]);
}

// Keys first .. first + count of a head (count <= kLanes) with their scales and offsets. `end`: the first element that
// is not this block's; up to there a row may spill over into the next ones, which are written later.
template <Type kType, int V>
void quantise_keys(const SageHead& h, const char* row, int64_t stride, int first, int count, int channels,
                   const uint32_t* end) {
  const char* rows[kLanes];
  for (int i = 0; i < count; ++i, row += stride) rows[i] = row;
  const F range = row_ranges<kType, true, V>(rows, count, channels, h.key_mean, h.key_inverse);
  float inverse[kLanes];
  store(inverse, byte_inverse(range));
  const int tail = (channels - 1) / (4 * kLanes) * (4 * kLanes), last = channels - tail - (V - 1) * kLanes;
  I sums[kLanes];
  uint32_t* to = h.keys + static_cast<size_t>(first) * h.elements;
  for (int i = 0; i < count; ++i, to += h.elements) {
    const F by = splat(inverse[i]);
    I total{};
    for (int c = 0; c < tail; c += 4 * kLanes) {
      F x[4];
      load_balanced<kType, true, 4>(rows[i], c, kLanes, h.key_mean, h.key_inverse, x);
      store(to + c / 4, to_words<4>(x, by, total));
    }
    F x[V];
    load_balanced<kType, true, V>(rows[i], tail, last, h.key_mean, h.key_inverse, x);
    const I words = to_words<V>(x, by, total);
    uint32_t* place = to + tail / 4;
    if (end - place >= kLanes) {
      store(place, words);
    } else {
      __builtin_memcpy(place, &words, static_cast<size_t>(h.elements - tail / 4) * 4);
    }
    sums[i] = total;
  }
  for (int i = count; i < kLanes; ++i) sums[i] = I{};
  const F scale = range / 127.0f;
  const I offset = combine_rows(sums, [](I a, I b) { return a + b; }) * -128;
  if (count == kLanes) {
    store(h.key_scale + first, scale);
    store(h.key_offset + first, offset);
  } else {
    __builtin_memcpy(h.key_scale + first, &scale, static_cast<size_t>(count) * 4);
    __builtin_memcpy(h.key_offset + first, &offset, static_cast<size_t>(count) * 4);
  }
}

constexpr int kMostChannels = 1024;  // of the buffers on the stack; the op sends larger heads to the exact kernels

// V's bytes of one block, 4 keys to a word. kLines words of every channel are made before they are scattered: a load
// that straddles two vectors still on their way to the cache waits for both.
template <Type kType>
void quantise_values(const SageHead& h, const char* v, int64_t stride, int count, int channels, uint32_t* to) {
  constexpr int kWidth = kMostChannels + 2 * kLanes;
  uint32_t lines[kLines][kWidth];
  const int block_units = h.block / 4, units = (count + 3) / 4;
  for (int u0 = 0; u0 < units; u0 += kLines) {
    const int u1 = min_int(u0 + kLines, units);
    for (int u = u0; u < u1; ++u) {
      const char* row = v + 4 * u * stride;
      const int keys = min_int(4, count - 4 * u);
      for (int c = 0; c < channels; c += kLanes) {
        const F mean = load<F>(h.value_mean + c), inverse = load<F>(h.value_inverse + c);
        const char* from = row + static_cast<size_t>(c) * type_size(kType);
        const int n = min_int(kLanes, channels - c);
        const auto quantise = [&](int i) {
          const char* at = from + i * stride;
          const F x = n == kLanes ? load_as_float<kType>(at) : load_as_float<kType>(at, n);
          return nearest((x - mean) * inverse);
        };
        I y[4] = {};
        if (keys == 4) {
          SGL_UNROLL for (int i = 0; i < 4; ++i) y[i] = quantise(i);
        } else {
          for (int i = 0; i < keys; ++i) y[i] = quantise(i);
        }
        store(lines[u - u0] + c, interleave_bytes<false>(y[0], y[1], y[2], y[3]));
      }
    }
    int c = 0;
    for (; h.channels - c >= 12 || h.channels - c == 6; c += kChannelRows) {
      uint32_t* slot = to + static_cast<size_t>(c) * block_units + static_cast<size_t>(u0) * kChannelRows;
      for (int u = u0; u < u1; ++u, slot += kChannelRows) {
        // 32 bytes in one move; the two words too many are the next unit's, which comes later.
        __builtin_memcpy(slot, lines[u - u0] + c, u + 1 < block_units ? 32 : 24);
      }
    }
    while (c < h.channels) {
      const int group = channel_group(h.channels - c);
      uint32_t* slot = to + static_cast<size_t>(c) * block_units + static_cast<size_t>(u0) * group;
      for (int u = u0; u < u1; ++u, slot += group) {
        if (group == 6) __builtin_memcpy(slot, lines[u - u0] + c, 24);
        if (group == 4) __builtin_memcpy(slot, lines[u - u0] + c, 16);
        if (group == 2) __builtin_memcpy(slot, lines[u - u0] + c, 8);
      }
      c += group;
    }
  }
}

template <Type kType>
void quantise_block(const Problem& p, int32_t batch, int32_t kv_head, int32_t block, char* memory) {
  const SageHead h = sage_head(p, memory);
  const Sequence s = sequence_of(p, batch);
  const int32_t key0 = block * h.block, count = min_int(h.block, p.sk - key0);
  const uint32_t* end = h.keys + static_cast<size_t>(key0 + h.block) * h.elements;
  const char* k = s.k + kv_head * p.k.head + key0 * p.k.seq;
  with_last_vectors(p.d, [&](auto vectors) {
    for (int r = 0; r < count; r += kLanes) {
      quantise_keys<kType, decltype(vectors)::value>(h, k + r * p.k.seq, p.k.seq, key0 + r, min_int(kLanes, count - r),
                                                     p.d, end);
    }
  });
  if (count < h.block) {  // keys that are not there: bytes and scales of 0
    const size_t first = static_cast<size_t>(key0 + count), missing = static_cast<size_t>(h.block - count);
    __builtin_memset(h.keys + first * h.elements, 0, missing * h.elements * 4);
    __builtin_memset(h.key_scale + first, 0, missing * 4);
    __builtin_memset(h.key_offset + first, 0, missing * 4);
  }
  uint32_t* values = h.values + static_cast<size_t>(block) * (h.block / 4) * h.channels;
  quantise_values<kType>(h, s.v + kv_head * p.v.head + key0 * p.v.seq, p.v.seq, count, p.dv, values);
}

// One panel's queries as bytes with 128 added, transposed like pack_queries; their scales, per lane.
template <Type kType>
__attribute__((noinline)) void quantise_queries(const Problem& p, const SageHead& h, const char* heads, RowWalk walk,
                                                const Panel& panel, float* to, F* scales) {
  const int nv = panel.vectors;
  // The scale's sign stays on it: scores are products of floats here.
  const float unit = p.scale * kHalfLog2e / 127.0f;
  const U shift = U{} + 0x80808080u;
  RowWalk ahead = walk;
  const auto prefetch = [&](int rows) {
    for (int i = 0; i < rows; ++i, ahead.next()) {
      prefetch_row(heads + ahead.group_head * p.q.head + ahead.query * p.q.seq, p.d * type_size(kType));
    }
  };
  prefetch(min_int(kLanes, panel.rows));
  for (int j = 0; j < nv; ++j) {
    const int count = min_int(kLanes, panel.rows - j * kLanes);
    const char* rows[kLanes];
    for (int i = 0; i < count; ++i, walk.next()) rows[i] = heads + walk.group_head * p.q.head + walk.query * p.q.seq;
    prefetch(min_int(kLanes, panel.rows - (j + 1) * kLanes));
    for (int i = count; i < kLanes; ++i) rows[i] = rows[0];  // lanes that no row uses
    F range;
    with_last_vectors(p.d, [&](auto vectors) {
      range = row_ranges<kType, false, decltype(vectors)::value>(rows, kLanes, p.d, nullptr, h.key_factor);
    });
    float inverse[kLanes];
    store(inverse, byte_inverse(range));
    scales[j] = lane_index() < count ? range * unit : F{};
    float* column = to + j * kLanes;
    for (int c = 0; c < p.d; c += kLanes, column += static_cast<size_t>(kQuads) * nv * kLanes) {
      const bool whole = p.d - c >= kLanes;
      const F factor = load<F>(h.key_factor + c);
      I words[kQuads];  // 4 rows each, a channel quad in each 128 bits; then a channel quad each, of all rows
      SGL_UNROLL for (int g = 0; g < kQuads; ++g) {
        I y[4];
        SGL_UNROLL for (int i = 0; i < 4; ++i) {
          const char* from = rows[4 * g + i] + static_cast<size_t>(c) * type_size(kType);
          const F x = whole ? load_as_float<kType>(from) : load_as_float<kType>(from, p.d - c);
          y[i] = nearest(x * factor * splat(inverse[4 * g + i]));
        }
        words[g] = pack_words(y[0], y[1], y[2], y[3]);
      }
      transpose_quads(words);
      const int n = min_int(kQuads, h.elements - c / 4);
      for (int i = 0; i < n; ++i) {
        store(column + static_cast<size_t>(i) * nv * kLanes, reinterpret_cast<U>(words[i]) ^ shift);
      }
    }
  }
}

}  // namespace
}  // namespace sgl_kernels::attention
