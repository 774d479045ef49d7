// Cuts decoding into tasks. Reading K and V is all that decoding waits for, and memory is fastest in its own order.
#include <algorithm>

#include "attention/call.h"

namespace sgl_kernels::attention {
namespace {

// Whether a key's heads lie inside its row, as in (batch, seq, head, channel): then all of them are read together. One
// head at a time reads 256 or 512 bytes and jumps by kilobytes: 26 GB/s from memory and 60 from L3 on a Zen 5 core,
// against 40 and 97 in order.
bool heads_inside(const Tensor4& x) { return x.head >= 0 && x.head < x.seq; }

}  // namespace

DecodePlan plan_decode(const Problem& p, int32_t threads) {
  constexpr int64_t kKeys = 512;  // in a split, at least
  if (p.batch == 0 || p.sq == 0) return {1, {}};
  const int32_t group = p.heads / p.kv_heads;
  const int64_t most_rows = int64_t{group} * p.sq;
  const bool together = heads_inside(p.k) && heads_inside(p.v);
  const int64_t room = together ? kMaxDecodeHeadRows / (most_rows % 4 == 3 ? most_rows + 1 : most_rows) : 1;
  int64_t runs = ceil_div(p.kv_heads, room);
  DecodePlan plan{1, {}};
  if (threads > 1 && p.cu_q == nullptr && p.batch * runs < 4 * threads) {
    const int64_t most = std::max<int64_t>(1, p.sk / kKeys);
    plan.splits = static_cast<int32_t>(std::min(most, ceil_div(4 * threads, p.batch * runs)));
  }
  const int64_t tasks = p.batch * runs * plan.splits;
  if (threads > 1 && tasks < 2 * threads) runs = std::min<int64_t>(p.kv_heads, ceil_div(2 * threads * runs, tasks));
  const int32_t heads = static_cast<int32_t>(ceil_div(p.kv_heads, runs));
  for (int32_t b = 0; b < p.batch; ++b) {
    const int32_t sq = p.cu_q == nullptr ? p.sq : static_cast<int32_t>(p.cu_q[b + 1] - p.cu_q[b]);
    const int32_t sk = p.cu_k == nullptr ? p.sk : static_cast<int32_t>(p.cu_k[b + 1] - p.cu_k[b]);
    const int32_t keys = static_cast<int32_t>(plan.splits == 1 ? sk : ceil_div(ceil_div(sk, plan.splits), 64) * 64);
    for (int32_t h = 0; h < p.kv_heads && sq > 0; h += heads) {
      for (int32_t s = 0; s < plan.splits; ++s) {
        const int32_t key0 = std::min(sk, s * keys), key1 = std::min(sk, key0 + keys);
        plan.tasks.push_back({b, h, 0, group * sq, key0, key1, s, std::min(heads, p.kv_heads - h)});
      }
    }
  }
  return plan;
}

}  // namespace sgl_kernels::attention
