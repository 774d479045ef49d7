// The task loop of quantised attention.
#pragma once

#include "attention/sage/quantise-inl.h"
#include "attention/sage/store-inl.h"

namespace sgl_kernels::attention {
namespace {

struct SageScratch {
  size_t queries, scores, weights, values, line, key_bias, lane_bias, out, total;
  int32_t panels;
};

static inline SageScratch sage_scratch(const Problem& p, const SageHead& h, int32_t rows) {
  SageScratch s{};
  s.panels = (rows + kPanel - 1) / kPanel;
  size_t at = 0;
  auto take = [&at](size_t words) {
    const size_t start = at;
    at += (words * 4 + 63) / 64 * 64;
    return start;
  };
  const size_t block = static_cast<size_t>(h.block), panels = static_cast<size_t>(s.panels);
  s.queries = take(panels * h.elements * kPanel);
  s.scores = take((block + kKeyAlign) * kPanel);
  s.weights = take((block + kKeyAlign) / 4 * kPanel);
  s.values = take(block * h.channels);
  s.line = take(static_cast<size_t>(kLines) * round_up(h.channels, kLanes));
  s.key_bias = take(p.mask.data != nullptr ? block : 0);
  s.lane_bias = take(p.mask.data != nullptr ? block * kPanel : 0);
  s.out = take(panels * h.channels * kPanel);
  s.total = at;
  return s;
}

static inline size_t sage_scratch_bytes(const Problem& p, int32_t rows) {
  return sage_scratch(p, sage_head(p, nullptr), rows).total;
}

// Scores of keys first..last of a block (first a multiple of kKeyAlign), hidden ones -inf up to a multiple of 4.
template <int NV>
void byte_scores(const SageHead& h, int32_t block, const float* q, const F* query_scale, const ScoreRule& rule,
                 bool ruled, int first, int last, Panel& panel, float* scores) {
  constexpr int ROWS = kKeyRows<NV>;
  for (int j = 0; j < NV; ++j) panel.highest[j] = splat(kMinusInf);
  for (int r = first; r < last; r += ROWS) {
    const size_t at = static_cast<size_t>(block) * h.block + r;
    const int32_t key = rule.key0 + r;
    const bool inside = key + ROWS - 1 <= panel.first + rule.right && key >= panel.last - rule.left;
    const bool plain = !ruled && inside && r + ROWS <= last;
    F unused[NV] = {};
    byte_score_tile<ROWS, NV>(h.keys + at * h.elements, h.elements, q, h.elements, h.key_offset + at, h.key_scale + at,
                              query_scale, scores + static_cast<size_t>(r) * NV * kLanes,
                              plain ? panel.highest : unused);
    if (plain) continue;
    for (int row = r; row < r + ROWS; ++row) {
      for (int j = 0; j < NV; ++j) {
        float* to = scores + (static_cast<size_t>(row) * NV + j) * kLanes;
        const F s = row < last ? rule_score<NV>(load<F>(to), rule, row, j, panel, !inside) : splat(kMinusInf);
        panel.highest[j] = max(panel.highest[j], s);
        store(to, s);
      }
    }
  }
  for (int row = last; row < round_up(last, 4); ++row) {
    for (int j = 0; j < NV; ++j) store(scores + (static_cast<size_t>(row) * NV + j) * kLanes, splat(kMinusInf));
  }
}

// Moves the reference of lanes that see their first key, or a score 2^60 above it.
template <int NV>
void follow_scores(Panel& panel, int channels) {
  I rescale{};
  F decay[NV];
  for (int j = 0; j < NV; ++j) {
    const I seen = panel.highest[j] > splat(kMinusInf);
    const I first = (panel.sum[j] == F{}) & seen;
    const I moves = first | (panel.highest[j] - panel.reference[j] > splat(kRedo));
    const F fall = panel.reference[j] - panel.highest[j];
    decay[j] = moves ? exp2<5>(fall + fall) : splat(1.0f);
    decay[j] = first ? splat(1.0f) : decay[j];
    rescale |= moves & ~first;
    panel.reference[j] = moves ? panel.highest[j] : panel.reference[j];
    panel.sum[j] *= decay[j];
  }
  if (!any(rescale)) return;
  for (int c = 0; c < channels; ++c) {
    for (int j = 0; j < NV; ++j) {
      float* o = panel.out + (static_cast<size_t>(c) * NV + j) * kLanes;
      store(o, load<F>(o) * decay[j]);
    }
  }
}

template <int NV>
void attend_bytes(const SageHead& h, int32_t block, int first, int last, float* scores, uint32_t* weights,
                  Panel& panel) {
  F top[NV], factor[NV], sums[NV];
  for (int j = 0; j < NV; ++j) {
    top[j] = panel.highest[j] == splat(kMinusInf) ? panel.reference[j] : panel.highest[j];  // a lane that sees no key
    const F rise = top[j] - panel.reference[j];
    factor[j] = exp2<5>(rise + rise);
  }
  const int unit0 = first / 4, units = (last + 3) / 4 - unit0;
  const float* from = scores + static_cast<size_t>(first) * NV * kLanes;
  weights_to_bytes<NV>(from, units, top, weights, sums);
  for (int j = 0; j < NV; ++j) panel.sum[j] += sums[j] * factor[j];
  const size_t block_units = static_cast<size_t>(h.block) / 4;
  accumulate_bytes<NV>(h.values + block * block_units * h.channels, block_units, unit0, units, weights, factor,
                       panel.fresh, panel.out, h.channels);
  panel.fresh = false;
}

template <int NV>
void attend_floats(const float* values, size_t block, int first, int last, float* scores, int channels, Panel& panel) {
  for (int row = first; row < last; ++row) {
    SGL_UNROLL for (int j = 0; j < NV; ++j) {
      float* at = scores + (static_cast<size_t>(row) * NV + j) * kLanes;
      const F t = load<F>(at) - panel.reference[j], w = exp2<5>(t + t);
      panel.sum[j] += w;
      store(at, w);
    }
  }
  accumulate_values<DotF32, NV>(values, block, first, last - first, scores + static_cast<size_t>(first) * NV * kLanes,
                                panel.out, channels, Earlier::kept, nullptr);
}

template <Type kType>
bool run_sage(const Problem& p, const Task& task, char* memory, bool int8_values, char* scratch) {
  const SageHead h = sage_head(p, memory);
  const SageScratch l = sage_scratch(p, h, task.row1 - task.row0);
  auto part = [scratch](size_t offset) { return reinterpret_cast<float*>(scratch + offset); };
  float *const scores = part(l.scores), *const values = part(l.values);
  float *const key_bias = part(l.key_bias), *const lane_bias = part(l.lane_bias);
  uint32_t* weights = reinterpret_cast<uint32_t*>(scratch + l.weights);
  const size_t query_panel = static_cast<size_t>(h.elements) * kPanel;

  const Sequence s = sequence_of(p, task.batch);
  const int32_t head0 = task.kv_head * (p.heads / p.kv_heads);
  const RowWalk start(task.row0, s.sq);
  Panel panels[kChunkRows / kPanel];
  start_panels(panels, l.panels, h.channels, start, task.row1 - task.row0, part(l.out));
  if (!int8_values) clear_products(panels, l.panels, h.channels);
  F query_scales[kChunkRows / kPanel][kMaxVectors];
  int32_t first = p.sq, last = 0;
  for (int n = 0; n < l.panels; ++n) {
    quantise_queries<kType>(p, h, s.q + head0 * p.q.head, RowWalk(task.row0 + n * kPanel, s.sq), panels[n],
                            part(l.queries) + n * query_panel, query_scales[n]);
    first = min_int(first, panels[n].first);
    last = max_int(last, panels[n].last);
  }

  ScoreRule rule{};
  rule.left = s.left;
  rule.right = s.right;
  const MaskPlan mask = plan_mask(p, task, s);
  const int32_t begin = max_int(task.key0, first - s.left);
  const int32_t end = min_int(min_int(task.key1, s.sk), last + s.right + 1);
  for (int32_t block = begin / h.block; block * h.block < end; ++block) {
    const int32_t key0 = block * h.block, count = min_int(h.block, end - key0);
    rule.key0 = key0;
    if (mask.per_key) {
      if (!key_biases(p.mask, mask, key0, count, key_bias)) continue;
      rule.key_bias = key_bias;
    }
    if (!int8_values) {
      pack_values<DotF32, kType>(s.v + task.kv_head * p.v.head + key0 * p.v.seq, p.v.seq, count, p.dv, h.channels,
                                 static_cast<size_t>(h.block), part(l.line), values);
    }
    for (int n = 0; n < l.panels; ++n) {
      Panel& panel = panels[n];
      const int32_t from = max_int(0, panel.first - s.left - key0) / kKeyAlign * kKeyAlign;
      const int32_t to = min_int(count, panel.last + s.right + 1 - key0);
      if (from >= to) continue;
      rule.lane_bias = nullptr;
      if (mask.per_lane) {
        const RowWalk walk(task.row0 + n * kPanel, s.sq);
        const MaskBlock kind = pack_mask(p.mask, mask.heads, walk, panel, key0, to, lane_bias);
        if (kind == MaskBlock::hidden) continue;
        if (kind == MaskBlock::mixed) rule.lane_bias = lane_bias;
      }
      const bool ruled = rule.key_bias != nullptr || rule.lane_bias != nullptr;
      with_vectors(panel.vectors, [&](auto vectors) {
        constexpr int NV = decltype(vectors)::value;
        byte_scores<NV>(h, block, part(l.queries) + n * query_panel, query_scales[n], rule, ruled, from, to, panel,
                        scores);
        follow_scores<NV>(panel, h.channels);
        if (int8_values) {
          attend_bytes<NV>(h, block, from, to, scores, weights, panel);
        } else {
          attend_floats<NV>(values, static_cast<size_t>(h.block), from, to, scores, h.channels, panel);
        }
      });
    }
  }

  char* out = s.out + head0 * p.out.head;
  bool unseen = false;
  for (int n = 0; n < l.panels; ++n) {
    for (int j = 0; j < panels[n].vectors; ++j) {
      panels[n].sum[j] += query_scales[n][j] * 0.0f;  // a query with NaN or infinities is NaN
    }
    const RowWalk walk(task.row0 + n * kPanel, s.sq);
    uint8_t failed[kPanel];
    find_unseen(p, mask, s, task, walk, panels[n], unseen, failed);
    int8_values ? store_sage<kType, true>(p, out, walk, panels[n], h)
                : store_sage<kType, false>(p, out, walk, panels[n], h);
  }
  return !unseen;
}

static inline bool measure_by_type(const Problem& p, int32_t batch, int32_t kv_head, char* memory) {
  if (p.type == Type::f32) return measure_head<Type::f32>(p, batch, kv_head, memory);
  if (p.type == Type::bf16) return measure_head<Type::bf16>(p, batch, kv_head, memory);
  return measure_head<Type::f16>(p, batch, kv_head, memory);
}

static inline void quantise_by_type(const Problem& p, int32_t batch, int32_t kv_head, int32_t block, char* memory) {
  if (p.type == Type::f32) quantise_block<Type::f32>(p, batch, kv_head, block, memory);
  if (p.type == Type::bf16) quantise_block<Type::bf16>(p, batch, kv_head, block, memory);
  if (p.type == Type::f16) quantise_block<Type::f16>(p, batch, kv_head, block, memory);
}

static inline bool sage_by_type(const Problem& p, const Task& task, char* memory, bool int8_values, char* scratch) {
  if (p.type == Type::f32) return run_sage<Type::f32>(p, task, memory, int8_values, scratch);
  if (p.type == Type::bf16) return run_sage<Type::bf16>(p, task, memory, int8_values, scratch);
  return run_sage<Type::f16>(p, task, memory, int8_values, scratch);
}

}  // namespace
}  // namespace sgl_kernels::attention
