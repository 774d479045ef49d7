// How a task meets the mask, and which rows see a key at all.
#pragma once

#include "attention/pack-inl.h"

namespace sgl_kernels::attention {
namespace {

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

// Whether a row sees any of the task's keys. `heads`: the mask of the key head's first query head, or null.
static inline bool sees_key(const Problem& p, const char* heads, const Sequence& s, const Task& task,
                            const RowWalk& walk) {
  const int32_t begin = max_int(task.key0, walk.query - s.left);
  const int32_t end = min_int(min_int(task.key1, s.sk), walk.query + s.right + 1);
  if (heads == nullptr) return begin < end;
  const char* row = heads + walk.group_head * p.mask.head + walk.query * p.mask.query + begin * p.mask.key;
  const int64_t size = type_size(p.mask.type);
  if (begin < end && p.mask.key == size) {  // hidden is one pattern of bits: all are, if the first is and all are alike
    const size_t rest = static_cast<size_t>((end - begin - 1) * size);
    return mask_bias(row, p.mask.type) != kMinusInf || __builtin_memcmp(row, row + size, rest) != 0;
  }
  for (int32_t key = begin; key < end; ++key) {
    if (mask_bias(row + (key - begin) * p.mask.key, p.mask.type) != kMinusInf) return true;
  }
  return false;
}

// Rows without a weight that see a key have failed as well: all their products overflowed below.
static inline void find_unseen(const Problem& p, const MaskPlan& mask, const Sequence& s, const Task& task,
                               RowWalk walk, const Panel& panel, bool& any_failed, uint8_t* failed) {
  I empty{};
  for (int j = 0; j < panel.vectors; ++j) empty |= panel.sum[j] == F{};
  if (__builtin_expect(!any(empty), 1)) return;
  for (int r = 0; r < panel.rows; ++r, walk.next()) {
    if (panel.sum[r / kLanes][r % kLanes] != 0 || !sees_key(p, mask.heads, s, task, walk)) continue;
    failed[r] = kNoWeights;
    any_failed = true;
  }
}

}  // namespace
}  // namespace sgl_kernels::attention
