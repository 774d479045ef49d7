// The kernel for a few query rows (decoding): lanes are channels, every key is read once for all rows that share it.
// Bound by reading K and V, so nothing is packed.
#pragma once

#include "attention_pack.h"

namespace sgl_kernels::attention {
namespace {

constexpr int kChunk = 256;  // keys whose scores are held at a time: K and V of the chunk pass through L2 once

constexpr int kAhead = 8;        // keys between a load of K and the prefetch beside it
constexpr int kValueRows = 32;   // rows of V that pass strip by strip, from L1, while the next ones are prefetched

// Each lane of the result is the sum of one of the vectors, in order.
SGL_INLINE F sum_each(F (&x)[kLanes]) {
#if defined(__AVX512F__)
  __m512 a[8], b[4];  // 45 instructions for 16 sums; a transpose and 15 additions take 79
  SGL_UNROLL for (int i = 0; i < 8; ++i) {
    a[i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]) + _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
  }
  SGL_UNROLL for (int i = 0; i < 4; ++i) {
    const __m512d even = _mm512_castps_pd(a[2 * i]), odd = _mm512_castps_pd(a[2 * i + 1]);
    b[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(even, odd)) + _mm512_castpd_ps(_mm512_unpackhi_pd(even, odd));
  }
  const __m512 lo = _mm512_shuffle_f32x4(b[0], b[1], 0x88) + _mm512_shuffle_f32x4(b[0], b[1], 0xdd);
  const __m512 hi = _mm512_shuffle_f32x4(b[2], b[3], 0x88) + _mm512_shuffle_f32x4(b[2], b[3], 0xdd);
  return _mm512_shuffle_f32x4(lo, hi, 0x88) + _mm512_shuffle_f32x4(lo, hi, 0xdd);
#elif defined(__AVX2__)
  F a[4], b[2];  // 21 instructions for 8 sums
  SGL_UNROLL for (int i = 0; i < 4; ++i) {
    a[i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]) + _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
  }
  SGL_UNROLL for (int i = 0; i < 2; ++i) {
    const F even = a[2 * i], odd = a[2 * i + 1];
    b[i] = _mm256_shuffle_ps(even, odd, 0x44) + _mm256_shuffle_ps(even, odd, 0xee);
  }
  return _mm256_permute2f128_ps(b[0], b[1], 0x20) + _mm256_permute2f128_ps(b[0], b[1], 0x31);
#else
  transpose(x);
  F s = x[0];
  SGL_UNROLL for (int i = 1; i < kLanes; ++i) s += x[i];
  return s;
#endif
}

// Products of ROWS queries with the chunk's keys: scores[row][key]. Queries are floats, zero beyond d.
template <Type kType, int ROWS>
void dot_keys(const Tensor4& k, const char* keys, int count, int d, const float* queries, int query_stride,
              float* scores) {
  constexpr int STEP = kLanes / ROWS;  // keys at once: kLanes sums in flight
  const int whole = d / kLanes * kLanes;
  for (int key = 0; key < count; key += STEP) {
    const char* row[STEP];
    SGL_UNROLL for (int i = 0; i < STEP; ++i) row[i] = keys + min_int(key + i, count - 1) * k.seq;
    F sum[kLanes];
    SGL_UNROLL for (int i = 0; i < kLanes; ++i) sum[i] = F{};
    for (int c = 0; c < whole; c += kLanes) {
      F q[ROWS];
      SGL_UNROLL for (int r = 0; r < ROWS; ++r) q[r] = load<F>(queries + r * query_stride + c);
      SGL_UNROLL for (int i = 0; i < STEP; ++i) {
        const F x = load_as_float<kType>(row[i] + static_cast<size_t>(c) * type_size(kType));
        __builtin_prefetch(row[i] + kAhead * k.seq + static_cast<size_t>(c) * type_size(kType));
        SGL_UNROLL for (int r = 0; r < ROWS; ++r) sum[r * STEP + i] += q[r] * x;
      }
    }
    if (whole < d) {
      SGL_UNROLL for (int i = 0; i < STEP; ++i) {
        const F x = load_as_float<kType>(row[i] + static_cast<size_t>(whole) * type_size(kType), d - whole);
        SGL_UNROLL for (int r = 0; r < ROWS; ++r) {
          sum[r * STEP + i] += load<F>(queries + r * query_stride + whole) * x;
        }
      }
    }
    const F totals = sum_each(sum);
    SGL_UNROLL for (int r = 0; r < ROWS; ++r) {
      __builtin_memcpy(scores + r * kChunk + key, reinterpret_cast<const char*>(&totals) + r * STEP * 4, STEP * 4);
    }
  }
}

// out[row][channels c ...] = out * decay[row] + weights[row] V, for COLUMNS vectors of channels (the last one of
// `n` lanes where PARTIAL).
template <Type kType, int ROWS, int COLUMNS, bool PARTIAL>
SGL_INLINE void add_values(const Tensor4& v, const char* values, int count, int n, const float* weights,
                           const float* decay, float* out, int out_stride) {
  F acc[ROWS][COLUMNS];
  SGL_UNROLL for (int r = 0; r < ROWS; ++r) {
    SGL_UNROLL for (int c = 0; c < COLUMNS; ++c) {
      acc[r][c] = load<F>(out + r * out_stride + c * kLanes) * decay[r];
    }
  }
  for (int key = 0; key < count; ++key) {
    const char* row = values + key * v.seq;
    for (int c = 0; c < COLUMNS * kLanes * type_size(kType); c += 64) {  // one line each
      __builtin_prefetch(row + kValueRows * v.seq + c);
    }
    F x[COLUMNS];
    SGL_UNROLL for (int c = 0; c < COLUMNS; ++c) {
      const char* p = row + static_cast<size_t>(c) * kLanes * type_size(kType);
      x[c] = PARTIAL ? load_as_float<kType>(p, n) : load_as_float<kType>(p);
    }
    SGL_UNROLL for (int r = 0; r < ROWS; ++r) {
      const F w = splat(weights[r * kChunk + key]);
      SGL_UNROLL for (int c = 0; c < COLUMNS; ++c) acc[r][c] += w * x[c];
    }
  }
  SGL_UNROLL for (int r = 0; r < ROWS; ++r) {
    SGL_UNROLL for (int c = 0; c < COLUMNS; ++c) store(out + r * out_stride + c * kLanes, acc[r][c]);
  }
}

template <Type kType, int ROWS>
void add_some_values(const Tensor4& v, const char* values, int count, int dv, const float* weights, const float* decay,
                    float* out, int out_stride) {
  constexpr int WIDE = kManyRegisters && ROWS < 4 ? 8 : kManyRegisters || ROWS < 4 ? 4 : 2;
  constexpr int STEP = kLanes * type_size(kType);
  int c = 0;
  for (; c + WIDE * kLanes <= dv; c += WIDE * kLanes, values += WIDE * STEP) {
    add_values<kType, ROWS, WIDE, false>(v, values, count, 0, weights, decay, out + c, out_stride);
  }
  for (; c + 2 * kLanes <= dv; c += 2 * kLanes, values += 2 * STEP) {
    add_values<kType, ROWS, 2, false>(v, values, count, 0, weights, decay, out + c, out_stride);
  }
  for (; c + kLanes <= dv; c += kLanes, values += STEP) {
    add_values<kType, ROWS, 1, false>(v, values, count, 0, weights, decay, out + c, out_stride);
  }
  if (c < dv) add_values<kType, ROWS, 1, true>(v, values, count, dv - c, weights, decay, out + c, out_stride);
}

template <Type kType, int ROWS>
void add_all_values(const Tensor4& v, const char* values, int count, int dv, const float* weights, const float* decay,
                    float* out, int out_stride) {
  const float keep[4] = {1, 1, 1, 1};
  for (int key = 0; key < count; key += kValueRows, values += kValueRows * v.seq, decay = keep) {
    add_some_values<kType, ROWS>(v, values, min_int(kValueRows, count - key), dv, weights + key, decay, out, out_stride);
  }
}

struct RowState {
  float highest, sum;
};

// Scores of one row to weights, in place; returns what earlier weights are multiplied by. scores has room for a
// whole vector past count; bias may be null. Keys outside [from, to) of the chunk are hidden.
static inline float weigh(float* scores, int count, const ScoreRule& rule, const float* bias, int from, int to,
                          RowState& state) {
  const I lane = lane_index();
  F top = splat(kMinusInf);
  I poisoned{};
  for (int k = 0; k < count; k += kLanes) {
    F s = load<F>(scores + k) * rule.scale;
    if (rule.cap != 0) s = tanh(s) * rule.cap;
    if (bias != nullptr) {
      const F b = load<F>(bias + k);
      s = b == splat(kMinusInf) ? b : s + b;
    }
    const I at = lane + k;
    s = (at >= from) & (at < to) ? s : splat(kMinusInf);
    poisoned |= s != s;
    top = max(top, s);
    store(scores + k, s);
  }
  float highest = max_lanes(top);
  if (!(highest > state.highest)) highest = state.highest;
  const bool nan = any(poisoned);
  if (highest < kNoScore && !nan) {  // nothing to see yet: no weights
    __builtin_memset(scores, 0, static_cast<size_t>(count) * 4);
    return 1.0f;
  }
  if (highest < kNoScore) highest = 0;
  const float decay = state.sum == 0 ? 0.0f : exp2<5>(splat(state.highest - highest))[0];
  F sum{};
  for (int k = 0; k < count; k += kLanes) {
    const F w = exp2<5>(load<F>(scores + k) - highest);
    sum += w;
    store(scores + k, w);
  }
  state.sum = state.sum * decay + sum_lanes(sum);
  state.highest = highest;
  return decay;
}

struct DecodeLayout {
  int32_t d, dv;
  size_t queries, out, scores, bias, total;
};

static inline DecodeLayout decode_layout(const Problem& p, int32_t rows) {
  DecodeLayout l{};
  l.d = round_up(p.d, kLanes);
  l.dv = round_up(p.dv, kLanes);
  const size_t padded = static_cast<size_t>(round_up(rows, 4));
  l.queries = 0;
  l.out = l.queries + padded * l.d * 4;
  l.scores = l.out + padded * l.dv * 4;
  l.bias = l.scores + (padded * kChunk + kLanes) * 4;
  l.total = l.bias + (kChunk + kLanes) * 4;
  return l;
}

static inline size_t decode_scratch(const Problem& p, int32_t rows) { return decode_layout(p, rows).total; }

template <Type kType>
void run_decode(const Problem& p, const Task& task, char* scratch) {
  const int32_t rows = task.row1 - task.row0;
  const DecodeLayout l = decode_layout(p, rows);
  float* queries = reinterpret_cast<float*>(scratch + l.queries);
  float* out = reinterpret_cast<float*>(scratch + l.out);
  float* scores = reinterpret_cast<float*>(scratch + l.scores);
  float* bias = reinterpret_cast<float*>(scratch + l.bias);
  __builtin_memset(scratch, 0, l.total);

  const Sequence s = sequence_of(p, task.batch);
  const int32_t head0 = task.kv_head * (p.heads / p.kv_heads);
  RowWalk walks[kMaxDecodeRows] = {{0, 1}, {0, 1}, {0, 1}, {0, 1}, {0, 1}, {0, 1}, {0, 1}, {0, 1}};
  RowState states[kMaxDecodeRows];
  int32_t begin = s.sk, end = 0;
  for (int r = 0; r < rows; ++r) {
    walks[r] = RowWalk(task.row0 + r, s.sq);
    states[r] = {kMinusInf, 0};
    const char* q = s.q + (head0 + walks[r].group_head) * p.q.head + walks[r].query * p.q.seq;
    for (int c = 0; c < p.d; c += kLanes) {
      const int n = min_int(kLanes, p.d - c);
      store(queries + r * l.d + c, load_as_float<kType>(q + static_cast<size_t>(c) * type_size(kType), n));
    }
    begin = min_int(begin, walks[r].query - s.left);
    end = max_int(end, walks[r].query + s.right + 1);
  }
  begin = max_int(begin, task.key0);
  end = min_int(end, min_int(task.key1, s.sk));

  ScoreRule rule{};
  rule.scale = p.softcap > 0 ? p.scale / p.softcap : p.scale * kLog2e;
  rule.cap = p.softcap > 0 ? p.softcap * kLog2e : 0;
  const char* mask = p.mask.data == nullptr ? nullptr : p.mask.data + task.batch * p.mask.batch + head0 * p.mask.head;
  for (int32_t key0 = begin; key0 < end; key0 += kChunk) {
    const int32_t count = min_int(kChunk, end - key0);
    const char* keys = s.k + task.kv_head * p.k.head + key0 * p.k.seq;
    const char* values = s.v + task.kv_head * p.v.head + key0 * p.v.seq;
    for (int r0 = 0; r0 < rows; r0 += 4) {
      const int n = min_int(4, rows - r0);
      float* block = scores + r0 * kChunk;
      const float* q = queries + r0 * l.d;
      if (n == 1) dot_keys<kType, 1>(p.k, keys, count, p.d, q, l.d, block);
      if (n == 2) dot_keys<kType, 2>(p.k, keys, count, p.d, q, l.d, block);
      if (n > 2) dot_keys<kType, 4>(p.k, keys, count, p.d, q, l.d, block);  // a fourth row of zeros
      float decay[4] = {0, 0, 0, 0};
      for (int r = r0; r < r0 + n; ++r) {
        const RowWalk& walk = walks[r];
        if (mask != nullptr) {
          const char* row = mask + walk.group_head * p.mask.head + walk.query * p.mask.query;
          mask_row(p.mask, row, key0, count, bias);
        }
        const int from = max_int(0, walk.query - s.left - key0);
        const int to = min_int(count, walk.query + s.right + 1 - key0);
        decay[r - r0] = weigh(scores + r * kChunk, count, rule, mask != nullptr ? bias : nullptr, from, to, states[r]);
      }
      float* o = out + r0 * l.dv;
      if (n == 1) add_all_values<kType, 1>(p.v, values, count, p.dv, block, decay, o, l.dv);
      if (n == 2) add_all_values<kType, 2>(p.v, values, count, p.dv, block, decay, o, l.dv);
      if (n > 2) add_all_values<kType, 4>(p.v, values, count, p.dv, block, decay, o, l.dv);
    }
  }

  for (int r = 0; r < rows; ++r) {
    const int32_t head = head0 + walks[r].group_head;
    char* to = s.out + head * p.out.head + walks[r].query * p.out.seq + task.split * p.out_split;
    const float sum = states[r].sum, inverse = 1.0f / sum;
    for (int c = 0; c < p.dv; c += kLanes) {
      const F o = load<F>(out + r * l.dv + c);
      const size_t offset = static_cast<size_t>(c) * type_size(p.out_type);
      store_from_float(to + offset, sum == 0 ? F{} : o * inverse, p.out_type, min_int(kLanes, p.dv - c));
    }
    if (p.lse != nullptr) {
      const float value = sum == 0 ? kMinusInf : natural_lse(states[r].highest, sum);
      p.lse[s.lse_offset + head * p.lse_head + walks[r].query + task.split * p.lse_split] = value;
    }
  }
}

}  // namespace
}  // namespace sgl_kernels::attention
