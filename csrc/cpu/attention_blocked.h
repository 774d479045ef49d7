// The blocked kernel: one task is some query rows against a range of keys. Blocks of keys are packed once per task
// and used by all its panels; keys that causal bounds, windows or masks hide from a whole panel are skipped.
#pragma once

#include "attention_pack.h"

namespace sgl_kernels::attention {
namespace {

template <int NV>
struct Vectors {
  static constexpr int value = NV;
};

template <Tile kTile>
struct Kind {
  static constexpr Tile value = kTile;
};

// body(Vectors<n>{}): the number of vectors of a panel as a constant.
template <class Body>
SGL_INLINE void with_vectors(int n, Body body) {
  if constexpr (kMaxVectors == 4) {
    if (n == 4) return body(Vectors<4>{});
    if (n == 3) return body(Vectors<3>{});
  }
  if (n == 2) return body(Vectors<2>{});
  body(Vectors<1>{});
}

// Scores of one block: keys first..last of the packed block; `first` is a multiple of the tile.
template <class Dot, int NV>
void score_block(const float* k, const float* q, int elements, const ScoreRule& rule, int first, int last,
                 Panel& panel, float* p) {
  constexpr int ROWS = kKeyRows<NV>;
  for (int j = 0; j < NV; ++j) panel.highest[j] = splat(kMinusInf);
  for (int r = first; r < last; r += ROWS) {
    const float* rows = k + static_cast<size_t>(r) * elements;
    float* weights = p + static_cast<size_t>(r / Dot::kUnit) * NV * kLanes;
    const int32_t key = rule.key0 + r;
    const bool inside = key + ROWS - 1 <= panel.first + rule.right && key >= panel.last - rule.left;
    const auto tile = [&](auto kind, const float* bias) {
      constexpr Tile kTile = decltype(kind)::value;
      score_tile<Dot, NV, kTile>(rows, elements, q, elements, rule.scale, last - r, bias, panel, weights);
    };
    if (!inside || rule.cap != 0 || (rule.key_bias != nullptr && rule.lane_bias != nullptr)) {
      score_tile_ruled<Dot, NV>(rows, elements, q, elements, rule, r, last - r, !inside, panel, weights);
    } else if (rule.key_bias != nullptr) {
      tile(Kind<Tile::key_bias>{}, rule.key_bias + r);
    } else if (rule.lane_bias != nullptr) {
      tile(Kind<Tile::lane_bias>{}, rule.lane_bias + static_cast<size_t>(r) * NV * kLanes);
    } else if (r + ROWS <= last) {
      tile(Kind<Tile::whole>{}, nullptr);
    } else {
      tile(Kind<Tile::partial>{}, nullptr);
    }
  }
}

// Lazy softmax: weights are taken relative to the panel's reference. Where a score exceeds it by 2^60, or the first
// scores a lane ever sees lie 2^60 below it, the reference moves and the block is redone. Returns whether it moved.
template <int NV>
bool move_reference(Panel& panel, const F (&before)[NV], F (&decay)[NV]) {
  I moves[NV];
  I some{};
  for (int j = 0; j < NV; ++j) {
    const F rise = panel.highest[j] - panel.reference[j];
    const I unset = (before[j] == F{}) & (rise < splat(-kRedo)) & (panel.highest[j] > splat(kNoScore));
    moves[j] = (rise > splat(kRedo)) | unset;
    some |= moves[j];
  }
  if (__builtin_expect(!any(some), 1)) return false;
  for (int j = 0; j < NV; ++j) {
    const F next = moves[j] ? panel.highest[j] : panel.reference[j];
    const F step = moves[j] ? panel.reference[j] - next : F{};
    decay[j] = before[j] == F{} ? F{} : exp2<5>(step);
    panel.sum[j] = F{};
    panel.reference[j] = next;
  }
  return true;
}

// The weights of a block are summed by themselves, like its products, and then joined to what came `before`.
template <int NV>
SGL_INLINE void begin_sums(Panel& panel, F (&before)[NV]) {
  for (int j = 0; j < NV; ++j) {
    before[j] = panel.sum[j];
    panel.sum[j] = F{};
  }
}

template <int NV>
SGL_INLINE void join_sums(Panel& panel, const F (&before)[NV], const F* decay) {
  for (int j = 0; j < NV; ++j) panel.sum[j] += decay == nullptr ? before[j] : before[j] * decay[j];
}

template <class Dot, int NV>
void attend(const float* k, const float* q, int elements, const float* v, size_t block_units, int channels,
            const ScoreRule& rule, int first, int last, Panel& panel, float* p) {
  first = first / kKeyRows<NV> * kKeyRows<NV>;
  F before[NV], decay[NV];
  begin_sums<NV>(panel, before);
  score_block<Dot, NV>(k, q, elements, rule, first, last, panel, p);
  const bool moved = move_reference<NV>(panel, before, decay);
  if (moved) score_block<Dot, NV>(k, q, elements, rule, first, last, panel, p);
  join_sums<NV>(panel, before, moved ? decay : nullptr);
  const int unit0 = first / Dot::kUnit;
  const int units = (last + Dot::kUnit - 1) / Dot::kUnit - unit0;
  const float* weights = p + static_cast<size_t>(unit0) * NV * kLanes;
  accumulate_values<Dot, NV>(v, block_units, unit0, units, weights, panel.out, channels, moved ? decay : nullptr);
}

// Where the parts of a task's scratch start, in bytes.
struct Layout {
  int32_t block, elements, channels, panels;
  size_t queries, keys, values, weights, key_bias, lane_bias, line, out, total;
};

template <class Dot>
Layout layout_of(const Problem& p, int32_t rows) {
  Layout l{};
  // Keys per block: P^T (256 bytes a key and panel in fp32) and the packed K and V stay in the L2 cache.
  constexpr int32_t kBlock = Dot::kUnit == 1 ? 192 : 384;
  l.block = min_int(kBlock, round_up(max_int(p.sk, 1), Dot::kKeyStep));
  l.elements = round_up((p.d + Dot::kUnit - 1) / Dot::kUnit, Dot::kElementStep);
  l.channels = round_up(p.dv, Dot::kChannelStep);
  l.panels = (rows + kPanel - 1) / kPanel;
  size_t at = 0;
  auto take = [&at](size_t floats) {
    const size_t start = at;
    at += (floats * 4 + 63) / 64 * 64;
    return start;
  };
  const size_t block = static_cast<size_t>(l.block);
  l.queries = take(static_cast<size_t>(l.panels) * l.elements * kPanel);
  l.keys = take(block * l.elements);
  l.values = take(block / Dot::kUnit * l.channels);
  l.weights = take(block / Dot::kUnit * kPanel);
  l.key_bias = take(p.mask.data != nullptr ? block : 0);
  l.lane_bias = take(p.mask.data != nullptr ? block * kPanel : 0);
  l.line = take(static_cast<size_t>(kLines) * round_up(l.channels, kLanes));
  l.out = take(static_cast<size_t>(l.panels) * l.channels * kPanel);
  l.total = at;
  return l;
}

template <class Dot>
size_t blocked_scratch(const Problem& p, int32_t rows) {
  return layout_of<Dot>(p, rows).total;
}

static inline void start_panels(Panel* panels, int32_t count, int32_t channels, RowWalk walk, int32_t rows,
                                float* out) {
  for (int n = 0; n < count; ++n) {
    Panel& panel = panels[n];
    panel.rows = min_int(kPanel, rows - n * kPanel);
    panel.vectors = (panel.rows + kLanes - 1) / kLanes;
    panel.out = out + static_cast<size_t>(n) * channels * kPanel;
    panel.fresh = true;
    panel.first = panel.last = walk.query;
    for (int j = 0; j < kMaxVectors; ++j) {
      panel.reference[j] = panel.sum[j] = F{};
      panel.position[j] = I{};
      for (int i = 0; i < kLanes && j * kLanes + i < panel.rows; ++i, walk.next()) {
        panel.position[j][i] = walk.query;
        panel.first = min_int(panel.first, walk.query);
        panel.last = max_int(panel.last, walk.query);
      }
    }
    __builtin_memset(panel.out, 0, static_cast<size_t>(channels) * panel.vectors * kLanes * 4);
  }
}

// How a task meets the mask: one bias per key for all its rows, or one per key and row.
struct MaskPlan {
  bool per_key, per_lane;
  const char* heads;  // the mask of the key head's first query head
  const char* row;    // per key: its row
};

static inline MaskPlan plan_mask(const Problem& p, const Task& task, const Sequence& s) {
  if (p.mask.data == nullptr) return {};
  const int32_t group = p.heads / p.kv_heads, head = task.row0 / s.sq;
  const bool one_head = (task.row1 - 1) / s.sq == head;
  const bool per_key = p.mask.query == 0 && (p.mask.head == 0 || one_head);
  const char* heads = p.mask.data + task.batch * p.mask.batch + int64_t{task.kv_head} * group * p.mask.head;
  return {per_key, !per_key, heads, heads + head * p.mask.head};
}

// Biases of a block of keys; false where all are hidden.
static inline bool key_biases(const MaskView& view, const MaskPlan& plan, int32_t key0, int32_t count, float* to) {
  mask_row(view, plan.row, key0, count, to);
  bool shown = false;
  for (int k = 0; k < count; ++k) shown |= to[k] != kMinusInf;
  for (int k = count; k < round_up(count, kKeyAlign); ++k) to[k] = kMinusInf;  // the rest of the last tile
  return shown;
}

template <class Dot, Type kType>
void run_blocked(const Problem& p, const Task& task, char* scratch) {
  const Layout l = layout_of<Dot>(p, task.row1 - task.row0);
  auto part = [scratch](size_t offset) { return reinterpret_cast<float*>(scratch + offset); };
  float *const queries = part(l.queries), *const keys = part(l.keys), *const values = part(l.values);
  float *const weights = part(l.weights), *const key_bias = part(l.key_bias), *const lane_bias = part(l.lane_bias);
  const size_t block_units = static_cast<size_t>(l.block) / Dot::kUnit;
  const size_t query_panel = static_cast<size_t>(l.elements) * kPanel;

  const Sequence s = sequence_of(p, task.batch);
  const int32_t head0 = task.kv_head * (p.heads / p.kv_heads);
  const RowWalk start(task.row0, s.sq);
  const uint32_t sign = Dot::kUnit == 1 ? 0x80000000u : 0x80008000u;
  Panel panels[kMaxTaskRows / kPanel];
  start_panels(panels, l.panels, l.channels, start, task.row1 - task.row0, part(l.out));
  int32_t first = p.sq, last = 0;
  for (int n = 0; n < l.panels; ++n) {
    const RowWalk walk(task.row0 + n * kPanel, s.sq);
    pack_queries<Dot, kType>(p, s.q + head0 * p.q.head, walk, panels[n], l.elements, p.scale < 0 ? sign : 0,
                             queries + n * query_panel);
    first = min_int(first, panels[n].first);
    last = max_int(last, panels[n].last);
  }

  const float scale = p.scale < 0 ? -p.scale : p.scale;
  ScoreRule rule{};
  rule.scale = p.softcap > 0 ? scale / p.softcap : scale * kLog2e;
  rule.cap = p.softcap > 0 ? p.softcap * kLog2e : 0;
  rule.left = s.left;
  rule.right = s.right;
  const MaskPlan mask = plan_mask(p, task, s);
  const int32_t begin = max_int(task.key0, first - s.left);
  const int32_t end = min_int(min_int(task.key1, s.sk), last + s.right + 1);
  for (int32_t key0 = begin; key0 < end; key0 += l.block) {
    const int32_t count = min_int(l.block, end - key0);
    rule.key0 = key0;
    if (mask.per_key) {
      if (!key_biases(p.mask, mask, key0, count, key_bias)) continue;
      rule.key_bias = key_bias;
    }
    pack_keys<Dot, kType>(s.k + task.kv_head * p.k.head + key0 * p.k.seq, p.k.seq, count, p.d, l.elements, keys);
    const char* v = s.v + task.kv_head * p.v.head + key0 * p.v.seq;
    if constexpr (Dot::kMatrixUnit) {
      Dot::pack_values(v, p.v.seq, count, p.dv, l.channels, block_units, values);
    } else {
      pack_values<Dot, kType>(v, p.v.seq, count, p.dv, l.channels, block_units, part(l.line), values);
    }
    for (int n = 0; n < l.panels; ++n) {
      Panel& panel = panels[n];
      const int32_t from = max_int(0, panel.first - s.left - key0);
      const int32_t to = min_int(count, panel.last + s.right + 1 - key0);
      if (from >= to) continue;
      rule.lane_bias = nullptr;
      if (mask.per_lane) {
        const RowWalk walk(task.row0 + n * kPanel, s.sq);
        const MaskBlock kind = pack_mask(p.mask, mask.heads, walk, panel, key0, to, lane_bias);
        if (kind == MaskBlock::hidden) continue;
        if (kind == MaskBlock::mixed) rule.lane_bias = lane_bias;
      }
      const float* q = queries + n * query_panel;
      with_vectors(panel.vectors, [&](auto vectors) {
        constexpr int NV = decltype(vectors)::value;
        if constexpr (Dot::kMatrixUnit) {
          const bool ruled = rule.cap != 0 || rule.key_bias != nullptr || rule.lane_bias != nullptr;
          Dot::template attend<NV>(keys, q, l.elements, values, block_units, l.channels, rule, ruled, from, to, panel,
                                   weights);
        } else {
          attend<Dot, NV>(keys, q, l.elements, values, block_units, l.channels, rule, from, to, panel, weights);
        }
      });
    }
  }

  char* out = s.out + head0 * p.out.head + task.split * p.out_split;
  float* lse = p.lse == nullptr ? nullptr : p.lse + s.lse_offset + head0 * p.lse_head + task.split * p.lse_split;
  for (int n = 0; n < l.panels; ++n) {
    store_panel(p, out, lse, RowWalk(task.row0 + n * kPanel, s.sq), panels[n]);
  }
}

}  // namespace
}  // namespace sgl_kernels::attention
