// The blocked kernel: one task is some query rows against a range of keys. Blocks of keys are packed once per task
// and used by all its panels; keys that causal bounds, windows or masks hide from a whole panel are skipped.
#pragma once

#include "attention/visible-inl.h"

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
void score_block(const float* k, const float* q, int elements, const ScoreRule& rule, int first, int last, Panel& panel,
                 float* p) {
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
template <class Dot, int NV>
bool move_reference(Panel& panel, const F (&before)[NV], F (&decay)[NV]) {
  constexpr float kLimit = Dot::kCareful ? 0.0f : kRedo;
  I moves[NV];
  I some{}, far{};
  for (int j = 0; j < NV; ++j) {
    const F rise = panel.highest[j] - panel.reference[j];
    const I unset = (before[j] == F{}) & (rise < splat(-kLimit)) & (panel.highest[j] > splat(kMinusInf));
    moves[j] = (rise > splat(kLimit)) | unset;
    some |= moves[j];
  }
  if (__builtin_expect(!any(some), 1)) return false;
  for (int j = 0; j < NV; ++j) {
    const F next = moves[j] ? panel.highest[j] : panel.reference[j];
    const F step = moves[j] ? panel.reference[j] - next : F{};
    decay[j] = before[j] == F{} ? F{} : exp2<5>(step + step);
    panel.sum[j] = F{};
    panel.reference[j] = next;
    far |= (next > splat(kFarScore)) | (next < splat(-kFarScore));
  }
  panel.far = any(far);
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
  const bool moved = move_reference<Dot, NV>(panel, before, decay);
  if (moved) score_block<Dot, NV>(k, q, elements, rule, first, last, panel, p);
  join_sums<NV>(panel, before, moved ? decay : nullptr);
  const Earlier earlier = panel.begun ? moved ? Earlier::decayed : Earlier::kept : Earlier::none;
  panel.begun = true;
  const int unit0 = first / Dot::kUnit;
  const int units = (last + Dot::kUnit - 1) / Dot::kUnit - unit0;
  const float* weights = p + static_cast<size_t>(unit0) * NV * kLanes;
  accumulate_values<Dot, NV>(v, block_units, unit0, units, weights, panel.out, channels, earlier, decay);
}

// Packed K and V of a task that has several chunks of rows stay for the next chunk, up to this many bytes. Packing them
// for every 512 rows took 12 % of a float32 task of 4096 x 512 x 128, and 9 % of a bf16 one of 1024 x 1024 x 64.
constexpr size_t kKeptBytes = size_t{8} << 20;

// Where the parts of a task's scratch start, in bytes; a slot holds a packed block of keys and one of values.
struct Layout {
  int32_t block, elements, channels, panels, slots;
  size_t key_slot, value_slot;  // floats
  size_t queries, keys, values, weights, key_bias, lane_bias, line, out, held, total;
};

template <class Dot>
Layout layout_of(const Problem& p, int32_t rows) {
  Layout l{};
  // Keys per block: P^T (256 bytes a key and panel in fp32) and the packed K and V stay in the L2 cache.
  constexpr int32_t kBlock = Dot::kUnit == 1 ? 192 : 384;
  l.block = min_int(kBlock, round_up(max_int(p.sk, 1), Dot::kKeyStep));
  l.elements = round_up((p.d + Dot::kUnit - 1) / Dot::kUnit, Dot::kElementStep);
  l.channels = round_up(p.dv, Dot::kChannelStep);
  l.panels = (min_int(rows, kChunkRows) + kPanel - 1) / kPanel;
  size_t at = 0;
  auto take = [&at](size_t floats) {
    const size_t start = at;
    at += (floats * 4 + 63) / 64 * 64;
    return start;
  };
  const size_t block = static_cast<size_t>(l.block);
  l.key_slot = block * l.elements;
  l.value_slot = block / Dot::kUnit * l.channels;
  const size_t slot_bytes = (l.key_slot + l.value_slot) * 4;
  const int32_t blocks = max_int(1, (p.sk + l.block - 1) / l.block);
  const int32_t kept = static_cast<int32_t>(kKeptBytes / slot_bytes);
  l.slots = rows <= kChunkRows ? 1 : min_int(blocks, max_int(1, kept));
  l.queries = take(static_cast<size_t>(l.panels) * l.elements * kPanel);
  l.keys = take(l.key_slot * l.slots);
  l.values = take(l.value_slot * l.slots);
  l.weights = take(block / Dot::kUnit * kPanel);
  l.key_bias = take(p.mask.data != nullptr ? block : 0);
  l.lane_bias = take(p.mask.data != nullptr ? block * kPanel : 0);
  l.line = take(static_cast<size_t>(kLines) * round_up(l.channels, kLanes) + kLineSlack);
  l.held = take(l.slots);
  l.out = take(static_cast<size_t>(l.panels) * l.channels * kPanel);
  l.total = at;
  return l;
}

template <class Dot>
size_t blocked_scratch(const Problem& p, int32_t rows) {
  const size_t usual = layout_of<Dot>(p, rows).total;
  const size_t careful = layout_of<DotCareful>(p, min_int(rows, kChunkRows)).total;
  return usual > careful ? usual : careful;
}

static inline void start_panels(Panel* panels, int32_t count, int32_t channels, RowWalk walk, int32_t rows,
                                float* out) {
  for (int n = 0; n < count; ++n) {
    Panel& panel = panels[n];
    panel.rows = min_int(kPanel, rows - n * kPanel);
    panel.vectors = (panel.rows + kLanes - 1) / kLanes;
    panel.out = out + static_cast<size_t>(n) * channels * kPanel;
    panel.fresh = true;
    panel.far = panel.begun = false;
    panel.first = panel.last = walk.query;
    for (int j = 0; j < kMaxVectors; ++j) panel.reference[j] = panel.sum[j] = F{};
    if (walk.query + panel.rows <= walk.sq) {  // of one head
      for (int j = 0; j < kMaxVectors; ++j) panel.position[j] = lane_index() + (walk.query + j * kLanes);
      panel.last += panel.rows - 1;
      walk.skip(panel.rows);
      continue;
    }
    for (int j = 0; j < kMaxVectors; ++j) {
      panel.position[j] = I{};
      for (int i = 0; i < kLanes && j * kLanes + i < panel.rows; ++i, walk.next()) {
        panel.position[j][i] = walk.query;
        panel.first = min_int(panel.first, walk.query);
        panel.last = max_int(panel.last, walk.query);
      }
    }
  }
}

// For kernels that only ever add to the products.
static inline void clear_products(Panel* panels, int32_t count, int32_t channels) {
  for (int n = 0; n < count; ++n) {
    __builtin_memset(panels[n].out, 0, static_cast<size_t>(channels) * panels[n].vectors * kLanes * 4);
    panels[n].begun = true;
  }
}

// The packed keys and values of a block, from the slot that holds them or packed now.
template <class Dot, Type kType>
struct Packed {
  const Problem& problem;
  const Layout& layout;
  const char *k, *v;  // the key head's rows from the task's first key on
  char* scratch;
  int32_t* held;  // per slot: 1 + the block that it holds

  Packed(const Problem& p, const Layout& l, const Task& task, const Sequence& s, char* memory)
      : problem(p),
        layout(l),
        k(s.k + task.kv_head * p.k.head + task.key0 * p.k.seq),
        v(s.v + task.kv_head * p.v.head + task.key0 * p.v.seq),
        scratch(memory),
        held(reinterpret_cast<int32_t*>(memory + l.held)) {
    forget();
    const int32_t keys = min_int(task.key1, s.sk) - task.key0;
    fetch_first_rows(k, p.k.seq, keys, static_cast<size_t>(p.d) * type_size(kType));
    fetch_first_rows(v, p.v.seq, keys, static_cast<size_t>(p.dv) * type_size(kType));
  }

  void forget() {
    for (int32_t i = 0; i < layout.slots; ++i) held[i] = 0;
  }

  // The slot of a block; blocks beyond the last slot take turns in it. count: keys of the block that any row sees.
  int32_t slot_of(int32_t block, int32_t count) {
    const int32_t slot = min_int(block, layout.slots - 1);
    if (held[slot] == block + 1) return slot;
    held[slot] = block + 1;
    const int64_t key0 = int64_t{block} * layout.block;
    pack_keys<Dot, kType>(k + key0 * problem.k.seq, problem.k.seq, count, problem.d, layout.elements, keys(slot));
    const size_t block_units = static_cast<size_t>(layout.block) / Dot::kUnit;
    const char* rows = v + key0 * problem.v.seq;
    if constexpr (Dot::kMatrixUnit) {
      Dot::pack_values(rows, problem.v.seq, count, problem.dv, layout.channels, block_units, values(slot));
    } else {
      pack_values<Dot, kType>(rows, problem.v.seq, count, problem.dv, layout.channels, block_units,
                              reinterpret_cast<float*>(scratch + layout.line), values(slot));
    }
    return slot;
  }
  float* keys(int32_t slot) const { return reinterpret_cast<float*>(scratch + layout.keys) + slot * layout.key_slot; }
  float* values(int32_t slot) const {
    return reinterpret_cast<float*>(scratch + layout.values) + slot * layout.value_slot;
  }
};

// One chunk of rows against all keys of the task. DotCareful replaces the rows that failed.
template <class Dot, Type kType>
void run_chunk(const Problem& p, const Task& task, const Sequence& s, const Layout& l, Packed<Dot, kType>& packed,
               char* scratch, Failures& failures) {
  auto part = [scratch](size_t offset) { return reinterpret_cast<float*>(scratch + offset); };
  float *const queries = part(l.queries), *const weights = part(l.weights);
  float *const key_bias = part(l.key_bias), *const lane_bias = part(l.lane_bias);
  const size_t block_units = static_cast<size_t>(l.block) / Dot::kUnit;
  const size_t query_panel = static_cast<size_t>(l.elements) * kPanel;

  const int32_t rows = task.row1 - task.row0, count = (rows + kPanel - 1) / kPanel;
  const int32_t head0 = task.kv_head * (p.heads / p.kv_heads);
  const uint32_t sign = Dot::kUnit == 1 ? 0x80000000u : 0x80008000u;
  Panel panels[kChunkRows / kPanel];
  start_panels(panels, count, l.channels, RowWalk(task.row0, s.sq), rows, part(l.out));
  if constexpr (Dot::kMatrixUnit) clear_products(panels, count, l.channels);
  int32_t first = p.sq, last = 0;
  for (int n = 0; n < count; ++n) {
    const RowWalk walk(task.row0 + n * kPanel, s.sq);
    pack_queries<Dot, kType>(p, s.q + head0 * p.q.head, walk, panels[n], l.elements, p.scale < 0 ? sign : 0,
                             queries + n * query_panel);
    first = min_int(first, panels[n].first);
    last = max_int(last, panels[n].last);
  }

  const float scale = p.scale < 0 ? -p.scale : p.scale;
  ScoreRule rule{};
  rule.scale = p.softcap > 0 ? scale / p.softcap : scale * kHalfLog2e;
  rule.cap = p.softcap > 0 ? p.softcap * kHalfLog2e : 0;
  rule.left = s.left;
  rule.right = s.right;
  const MaskPlan mask = plan_mask(p, task, s);
  const int32_t begin = max_int(task.key0, first - s.left);
  const int32_t task_end = min_int(task.key1, s.sk), end = min_int(task_end, last + s.right + 1);
  for (int32_t block = (begin - task.key0) / l.block; task.key0 + block * l.block < end; ++block) {
    const int32_t key0 = task.key0 + block * l.block, seen = min_int(l.block, end - key0);
    rule.key0 = key0;
    if (mask.per_key) {
      if (!key_biases(p.mask, mask, key0, seen, key_bias)) continue;
      rule.key_bias = key_bias;
    }
    // a later chunk may see more of a block that stays
    const int32_t slot = packed.slot_of(block, l.slots > 1 ? min_int(l.block, task_end - key0) : seen);
    const float *const keys = packed.keys(slot), *const values = packed.values(slot);
    for (int n = 0; n < count; ++n) {
      Panel& panel = panels[n];
      const int32_t from = max_int(0, panel.first - s.left - key0);
      const int32_t to = min_int(seen, panel.last + s.right + 1 - key0);
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
  const int64_t lse = s.lse_offset + head0 * p.lse_head + task.split * p.lse_split;
  for (int n = 0; n < count; ++n) {
    const RowWalk walk(task.row0 + n * kPanel, s.sq);
    uint8_t* failed = failures.row + n * kPanel;
    if constexpr (Dot::kCareful) {
      store_failed(p, out, lse, walk, panels[n], failed);
    } else {
      store_panel(p, out, lse, walk, panels[n], failures.any, failed);
      find_unseen(p, mask, s, task, walk, panels[n], failures.any, failed);
    }
  }
}

template <Type kType>
__attribute__((noinline, cold)) void repeat_carefully(const Problem& p, const Task& chunk, const Sequence& s,
                                                      char* scratch, Failures& failures) {
  const Layout l = layout_of<DotCareful>(p, chunk.row1 - chunk.row0);
  Packed<DotCareful, kType> packed(p, l, chunk, s, scratch);
  run_chunk<DotCareful, kType>(p, chunk, s, l, packed, scratch, failures);
}

template <class Dot, Type kType>
void run_blocked(const Problem& p, const Task& task, char* scratch) {
  const Layout l = layout_of<Dot>(p, task.row1 - task.row0);
  const Sequence s = sequence_of(p, task.batch);
  Packed<Dot, kType> packed(p, l, task, s, scratch);
  Task chunk = task;
  for (; chunk.row0 < task.row1; chunk.row0 = chunk.row1) {
    chunk.row1 = min_int(chunk.row0 + kChunkRows, task.row1);
    // A chunk ends with its head, so that its panels do not straddle heads; heads of few rows share panels.
    if (s.sq >= kMergeBelow) chunk.row1 = min_int(chunk.row1, (chunk.row0 / s.sq + 1) * s.sq);
    Failures failures;
    run_chunk<Dot, kType>(p, chunk, s, l, packed, scratch, failures);
    if (__builtin_expect(failures.any, 0)) {
      repeat_carefully<kType>(p, chunk, s, scratch, failures);
      packed.forget();
    }
  }
}

}  // namespace
}  // namespace sgl_kernels::attention
