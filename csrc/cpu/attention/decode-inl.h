// The kernel for a few query rows (decoding): lanes are channels, every key is read once for all rows that share it.
// Bound by reading K and V, so nothing is packed.
#pragma once

#include "attention/decode_rows-inl.h"

namespace sgl_kernels::attention {
namespace {

// Products of ROWS queries with `count` keys: scores[row][key]. Queries are pairs as load_two has them, zero beyond d.
template <Type kType, int ROWS>
void dot_keys(const Tensor4& k, const char* keys, int count, int d, const float* queries, int query_stride,
              float* scores, const char* ahead) {
  constexpr int STEP = kLanes / ROWS;  // keys at once: kLanes sums in flight
  const int whole = d / kPair * kPair;
  for (int key = 0; key < count; key += STEP) {
    const char* row[STEP];
    SGL_UNROLL for (int i = 0; i < STEP; ++i) row[i] = keys + min_int(key + i, count - 1) * k.seq;
    F sum[kLanes];
    SGL_UNROLL for (int i = 0; i < kLanes; ++i) sum[i] = F{};
    for (int c = 0; c < whole; c += kPair) {
      Pair q[ROWS];
      SGL_UNROLL for (int r = 0; r < ROWS; ++r) {
        q[r] = {load<F>(queries + r * query_stride + c), load<F>(queries + r * query_stride + c + kLanes)};
      }
      SGL_UNROLL for (int i = 0; i < STEP; ++i) {
        const Pair x = load_two<kType>(row[i] + static_cast<size_t>(c) * type_size(kType));
        prefetch_two<kType>(ahead);
        ahead += kPair * type_size(kType);
        SGL_UNROLL for (int r = 0; r < ROWS; ++r) sum[r * STEP + i] += q[r].a * x.a;
        SGL_UNROLL for (int r = 0; r < ROWS; ++r) sum[r * STEP + i] += q[r].b * x.b;
      }
    }
    if (whole < d) {
      SGL_UNROLL for (int i = 0; i < STEP; ++i) {
        const Pair x = load_two<kType>(row[i] + static_cast<size_t>(whole) * type_size(kType), d - whole);
        SGL_UNROLL for (int r = 0; r < ROWS; ++r) {
          const float* q = queries + r * query_stride + whole;
          sum[r * STEP + i] += load<F>(q) * x.a;
          sum[r * STEP + i] += load<F>(q + kLanes) * x.b;
        }
      }
    }
    const F totals = sum_each(sum);
    SGL_UNROLL for (int r = 0; r < ROWS; ++r) {
      __builtin_memcpy(scores + r * kChunk + key, reinterpret_cast<const char*>(&totals) + r * STEP * 4, STEP * 4);
    }
  }
}

// out[row][channels c ...] = out * decay[row] + weights[row] V, for PAIRS pairs of vectors (`n` channels of the last
// one where PARTIAL). The sum of a few keys is joined to out whole: one chain over all keys had 2.4 times the error at
// 4096 of them.
template <class Dot, Type kType, int ROWS, int PAIRS, bool PARTIAL>
SGL_INLINE void add_values(const Tensor4& v, const char* values, int count, int n, const float* weights,
                           const float* decay, float* out, int out_stride, const char* ahead) {
  F acc[ROWS][2 * PAIRS];
  SGL_UNROLL for (int r = 0; r < ROWS; ++r) { SGL_UNROLL for (int c = 0; c < 2 * PAIRS; ++c) acc[r][c] = F{}; }
  for (int key = 0; key < count; ++key, values += v.seq) {
    Pair x[PAIRS];
    SGL_UNROLL for (int c = 0; c < PAIRS; ++c) {
      const char* p = values + static_cast<size_t>(c) * kPair * type_size(kType);
      x[c] = PARTIAL ? load_two<kType>(p, n) : load_two<kType>(p);
      prefetch_two<kType>(ahead);
      ahead += kPair * type_size(kType);
    }
    SGL_UNROLL for (int r = 0; r < ROWS; ++r) {
      const F w = splat(weights[r * kChunk + key]);
      SGL_UNROLL for (int c = 0; c < PAIRS; ++c) {
        acc[r][2 * c] = add_weighted<Dot>(acc[r][2 * c], x[c].a, w);
        acc[r][2 * c + 1] = add_weighted<Dot>(acc[r][2 * c + 1], x[c].b, w);
      }
    }
  }
  SGL_UNROLL for (int r = 0; r < ROWS; ++r) {
    SGL_UNROLL for (int c = 0; c < 2 * PAIRS; ++c) {
      float* o = out + r * out_stride + c * kLanes;
      store(o, load<F>(o) * decay[r] + acc[r][c]);
    }
  }
}

template <class Dot, Type kType, int ROWS>
void add_all_values(const Tensor4& v, const char* values, int count, int dv, const float* weights, const float* decay,
                    float* out, int out_stride, const char* ahead) {
  constexpr int WIDE = ROWS == 1 || (kManyRegisters && ROWS < 4) ? 4 : kManyRegisters || ROWS < 4 ? 2 : 1;
  constexpr int STEP = kPair * type_size(kType);
  int c = 0;
  for (; c + WIDE * kPair <= dv; c += WIDE * kPair, values += WIDE * STEP, ahead += count * WIDE * STEP) {
    add_values<Dot, kType, ROWS, WIDE, false>(v, values, count, 0, weights, decay, out + c, out_stride, ahead);
  }
  for (; c + kPair <= dv; c += kPair, values += STEP, ahead += count * STEP) {
    add_values<Dot, kType, ROWS, 1, false>(v, values, count, 0, weights, decay, out + c, out_stride, ahead);
  }
  if (c < dv) {
    add_values<Dot, kType, ROWS, 1, true>(v, values, count, dv - c, weights, decay, out + c, out_stride, ahead);
  }
}

struct RowState {
  float highest, sum;
};

// Scores of one row to weights, in place; returns what earlier weights are multiplied by. scores has room for a
// whole vector past count; bias may be null. Keys outside [from, to) of the chunk are hidden.
template <class Dot>
float weigh(float* scores, int count, const ScoreRule& rule, const float* bias, int from, int to, RowState& state) {
  const I lane = lane_index();
  F top = splat(kMinusInf);
  I poisoned{};
  for (int k = 0; k < count; k += kLanes) {
    F s = load<F>(scores + k) * rule.scale;
    s = rule.cap != 0 ? tanh(s) * rule.cap : saturated<Dot>(s);
    if (bias != nullptr) {
      const F b = load<F>(bias + k);
      s = b == splat(kMinusInf) ? b : max(splat(kLowest), s + b);
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
  if (highest == kMinusInf && !nan) {  // nothing to see yet: no weights
    __builtin_memset(scores, 0, static_cast<size_t>(count) * 4);
    return 1.0f;
  }
  if (highest == kMinusInf) highest = 0;
  const float fall = state.highest - highest;
  const float decay = state.sum == 0 ? 0.0f : exp2<5>(splat(fall + fall))[0];
  F sum{};
  for (int k = 0; k < count; k += kLanes) {
    const F w = weight_of<Dot>(far_exponent<Dot>(load<F>(scores + k), splat(highest)));
    sum += w;
    store(scores + k, w);
  }
  state.sum = state.sum * decay + sum_in_order(sum);
  state.highest = highest;
  return decay;
}

struct DecodeLayout {
  int32_t d, dv, rows;  // rows of one key head: a fourth one of zeros beside three
  size_t queries, out, scores, bias, total;
};

static inline DecodeLayout decode_layout(const Problem& p, const Task& task) {
  DecodeLayout l{};
  l.d = round_up(p.d, kPair);
  l.dv = round_up(p.dv, kPair);
  const int32_t rows = task.row1 - task.row0;
  l.rows = rows % 4 == 3 ? rows + 1 : rows;
  const size_t all = static_cast<size_t>(l.rows) * task.kv_heads;
  l.queries = 0;
  l.out = l.queries + all * l.d * 4;
  l.scores = l.out + all * l.dv * 4;
  l.bias = l.scores + (all * kChunk + kLanes) * 4;
  l.total = l.bias + (kChunk + kLanes) * 4;
  return l;
}

static inline size_t decode_scratch(const Problem& p, const Task& task) { return decode_layout(p, task).total; }

// Returns whether rows failed, as in Failures; those that did are all that DotCareful writes.
// Keys and values pass in windows of a few keys, all key heads of the task in each, so that memory is read nearly in
// its order; the prefetches are in that order.
template <class Dot, Type kType>
bool decode_rows(const Problem& p, const Task& task, char* scratch, uint8_t* failed) {
  constexpr int64_t kSize = type_size(kType);
  constexpr int kValueWindow = 16 / kSize;  // keys: 8 of floats, in rows of 4 KiB, crowd L1 (20 % slower)
  const int32_t rows = task.row1 - task.row0, kv_heads = task.kv_heads;
  const DecodeLayout l = decode_layout(p, task);
  float* queries = reinterpret_cast<float*>(scratch + l.queries);
  float* out = reinterpret_cast<float*>(scratch + l.out);
  float* scores = reinterpret_cast<float*>(scratch + l.scores);
  float* bias = reinterpret_cast<float*>(scratch + l.bias);
  __builtin_memset(scratch, 0, l.total);

  const Sequence s = sequence_of(p, task.batch);
  const int32_t group = p.heads / p.kv_heads, head0 = task.kv_head * group;
  RowWalk walks[kMaxDecodeRows] = {{0, 1}, {0, 1}, {0, 1}, {0, 1}, {0, 1}, {0, 1}, {0, 1}, {0, 1}};
  RowState states[kMaxDecodeHeadRows];
  float decays[kMaxDecodeHeadRows] = {};
  int32_t begin = s.sk, end = 0;
  for (int r = 0; r < rows; ++r) {
    walks[r] = RowWalk(task.row0 + r, s.sq);
    begin = min_int(begin, walks[r].query - s.left);
    end = max_int(end, walks[r].query + s.right + 1);
  }
  const int32_t last = min_int(task.key1, s.sk);
  begin = min_int(max_int(begin, task.key0), last);
  end = min_int(end, last);
  for (int h = 0; h < kv_heads; ++h) {
    for (int r = 0; r < rows; ++r) {
      const char* q = s.q + (head0 + h * group + walks[r].group_head) * p.q.head + walks[r].query * p.q.seq;
      float* to = queries + (h * l.rows + r) * l.d;
      states[h * l.rows + r] = {kMinusInf, 0};
      for (int c = 0; c < p.d; c += kPair, q += kPair * kSize) {
        const Pair x = p.d - c < kPair ? load_two<kType>(q, p.d - c) : load_two<kType>(q);
        store(to + c, x.a);
        store(to + c + kLanes, x.b);
      }
    }
  }

  ScoreRule rule{};
  rule.scale = p.softcap > 0 ? p.scale / p.softcap : p.scale * kHalfLog2e;
  rule.cap = p.softcap > 0 ? p.softcap * kHalfLog2e : 0;
  const char* mask = p.mask.data == nullptr ? nullptr : p.mask.data + task.batch * p.mask.batch + head0 * p.mask.head;

  const char* keys = s.k + task.kv_head * p.k.head + begin * p.k.seq;
  const char* values = s.v + task.kv_head * p.v.head + begin * p.v.seq;
  const int64_t key_lines = ((kv_heads - 1) * p.k.head + p.d * kSize + Ahead::kLine - 1) / Ahead::kLine;
  const int64_t value_lines = ((kv_heads - 1) * p.v.head + p.dv * kSize + Ahead::kLine - 1) / Ahead::kLine;
  Ahead ahead({keys, p.k.seq, key_lines}, {values, p.v.seq, value_lines}, max_int(end - begin, 0));
  // Rows of a head go four at a time, the last one or two by themselves: few of them, and sum_each takes more keys.
  const int key_window = max_int(4, kLanes / (l.rows % 4 == 0 ? 4 : l.rows % 4));
  // A window's heads are read one after another, so that its last rows are wanted early: it is prefetched as a whole.
  const int64_t window_lines = key_lines * key_window, least = kAhead / Ahead::kLine;
  ahead.advance(window_lines > least ? window_lines : least);

  for (int32_t key0 = begin; key0 < end; key0 += kChunk) {
    const int32_t count = min_int(kChunk, end - key0);
    for (int k = 0; k < count; k += key_window) {
      const int n = min_int(key_window, count - k);
      const int64_t share = key_lines * n / kv_heads;
      for (int h = 0; h < kv_heads; ++h) {
        const char* from = keys + h * p.k.head;
        const char* next = ahead.claim(h + 1 < kv_heads ? share : key_lines * n - share * h, from);
        for (int r = 0; r < l.rows; r += 4) {
          const float* q = queries + (h * l.rows + r) * l.d;
          float* to = scores + (h * l.rows + r) * kChunk + k;
          const int left = l.rows - r;
          if (left == 1) dot_keys<kType, 1>(p.k, from, n, p.d, q, l.d, to, next);
          if (left == 2) dot_keys<kType, 2>(p.k, from, n, p.d, q, l.d, to, next);
          if (left > 2) dot_keys<kType, 4>(p.k, from, n, p.d, q, l.d, to, next);
        }
      }
      keys += n * p.k.seq;
    }
    for (int h = 0; h < kv_heads; ++h) {
      for (int r = 0; r < rows; ++r) {
        const RowWalk& walk = walks[r];
        const int row = h * l.rows + r;
        if (mask != nullptr) {
          const char* at = mask + (h * group + walk.group_head) * p.mask.head + walk.query * p.mask.query;
          mask_row(p.mask, at, key0, count, bias);
        }
        const int from = max_int(0, walk.query - s.left - key0);
        const int to = min_int(count, walk.query + s.right + 1 - key0);
        decays[row] =
            weigh<Dot>(scores + row * kChunk, count, rule, mask != nullptr ? bias : nullptr, from, to, states[row]);
      }
    }
    for (int k = 0; k < count; k += kValueWindow) {
      const int n = min_int(kValueWindow, count - k);
      const int64_t share = value_lines * n / kv_heads;
      for (int h = 0; h < kv_heads; ++h) {
        const char* from = values + h * p.v.head;
        const char* next = ahead.claim(h + 1 < kv_heads ? share : value_lines * n - share * h, from);
        for (int r = 0; r < l.rows; r += 4) {
          const int row = h * l.rows + r, left = l.rows - r;
          const float* weights = scores + row * kChunk + k;
          float* o = out + row * l.dv;
          if (left == 1) add_all_values<Dot, kType, 1>(p.v, from, n, p.dv, weights, decays + row, o, l.dv, next);
          if (left == 2) add_all_values<Dot, kType, 2>(p.v, from, n, p.dv, weights, decays + row, o, l.dv, next);
          if (left > 2) add_all_values<Dot, kType, 4>(p.v, from, n, p.dv, weights, decays + row, o, l.dv, next);
        }
        for (int r = 0; r < l.rows; ++r) decays[h * l.rows + r] = 1;
      }
      values += n * p.v.seq;
    }
  }

  bool some = false;
  for (int h = 0; h < kv_heads; ++h) {
    for (int r = 0; r < rows; ++r) {
      const int32_t row = h * l.rows + r, head = head0 + h * group + walks[r].group_head;
      if (Dot::kCareful && !failed[row]) continue;
      char* to = s.out + head * p.out.head + walks[r].query * p.out.seq + task.split * p.out_split;
      const float sum = states[row].sum, inverse = sum == 0 ? 0.0f : 1.0f / sum;
      F check{};
      for (int c = 0; c < p.dv; c += kPair) {
        const float* o = out + row * l.dv + c;
        Pair x = {load<F>(o) * inverse, load<F>(o + kLanes) * inverse};
        if constexpr (Dot::kCareful) x = {divided(load<F>(o), sum), divided(load<F>(o + kLanes), sum)};
        check += (x.a + x.b) * 0.0f;
        x = in_order<kType>(x);
        char* at = to + static_cast<size_t>(c) * type_size(p.out_type);
        const int n = p.dv - c;
        store_from_float(at, sum == 0 ? F{} : x.a, p.out_type, min_int(kLanes, n));
        if (n > kLanes) {
          at += kLanes * type_size(p.out_type);
          store_from_float(at, sum == 0 ? F{} : x.b, p.out_type, min_int(kLanes, n - kLanes));
        }
      }
      const int64_t at = s.lse_offset + head * p.lse_head + walks[r].query + task.split * p.lse_split;
      if constexpr (Dot::kCareful) {
        if (failed[row] == kNoWeights) store_lse(p, at, states[row].highest, sum * kCarefulUnshift);
      } else {
        store_lse(p, at, states[row].highest, sum);
        failed[row] = sum != 0 && sum == sum && any(check != check);
        const char* heads = mask == nullptr ? nullptr : mask + int64_t{h} * group * p.mask.head;
        if (__builtin_expect(sum == 0, 0) && sees_key(p, heads, s, task, walks[r])) failed[row] = kNoWeights;
        some |= failed[row] != 0;
      }
    }
  }
  return some;
}

template <Type kType>
void run_decode(const Problem& p, const Task& task, char* scratch) {
  uint8_t failed[kMaxDecodeHeadRows];
  if (__builtin_expect(decode_rows<DotF32, kType>(p, task, scratch, failed), 0)) {
    decode_rows<DotCareful, kType>(p, task, scratch, failed);
  }
}

}  // namespace
}  // namespace sgl_kernels::attention
