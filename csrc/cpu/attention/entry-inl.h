// The entry points that a file compiled for one instruction set offers, over float products.
#pragma once

#include "attention/blocked-inl.h"
#include "attention/decode-inl.h"

namespace sgl_kernels::attention {
namespace {

static inline void run_by_type(const Problem& p, const Task& task, char* scratch) {
  if (p.type == Type::f32) run_blocked<DotF32, Type::f32>(p, task, scratch);
  if (p.type == Type::bf16) run_blocked<DotF32, Type::bf16>(p, task, scratch);
  if (p.type == Type::f16) run_blocked<DotF32, Type::f16>(p, task, scratch);
}

static inline void decode_by_type(const Problem& p, const Task& task, char* scratch) {
  if (p.type == Type::f32) run_decode<Type::f32>(p, task, scratch);
  if (p.type == Type::bf16) run_decode<Type::bf16>(p, task, scratch);
  if (p.type == Type::f16) run_decode<Type::f16>(p, task, scratch);
}

static inline void combine_parts(const Problem& parts, const Problem& whole, int32_t splits, int64_t row0,
                                 int64_t row1) {
  for (int64_t row = row0; row < row1; ++row) {
    const int64_t query = row % whole.sq, head = row / whole.sq % whole.heads, batch = row / whole.sq / whole.heads;
    const float* lse = parts.lse + batch * parts.lse_batch + head * parts.lse_head + query;
    const char* in = parts.out.data + batch * parts.out.batch + head * parts.out.head + query * parts.out.seq;
    char* out = whole.out.data + batch * whole.out.batch + head * whole.out.head + query * whole.out.seq;
    const float* sums = parts.sums + (lse - parts.lse);
    float top = kMinusInf;
    bool empty = true;
    for (int32_t s = 0; s < splits; ++s) {
      const int64_t at = s * parts.lse_split;
      if (sums[at] == 0) continue;  // saw no key
      empty = false;
      top = lse[at] > top ? lse[at] : top;
    }
    const auto weight = [&](int64_t at) {
      const float t = lse[at] - top;
      return sums[at] * exp2<5>(splat(t + t))[0];
    };
    float sum = 0;
    for (int32_t s = 0; s < splits; ++s) {
      const int64_t at = s * parts.lse_split;
      if (sums[at] != 0) sum += weight(at);
    }
    for (int c = 0; c < whole.dv; c += kLanes) {
      const int n = min_int(kLanes, whole.dv - c);
      F o{};
      for (int32_t s = 0; s < splits; ++s) {
        const int64_t at = s * parts.lse_split;
        if (sums[at] == 0) continue;
        const char* p = in + s * parts.out_split + static_cast<size_t>(c) * 4;
        o += (weight(at) / sum) * load_as_float<Type::f32>(p, n);
      }
      const size_t offset = static_cast<size_t>(c) * type_size(whole.out_type);
      store_from_float(out + offset, empty ? F{} : o, whole.out_type, n);
    }
    if (whole.lse != nullptr) {
      store_lse(whole, batch * whole.lse_batch + head * whole.lse_head + query, empty ? 0 : top, empty ? 0 : sum);
    }
  }
}

}  // namespace
}  // namespace sgl_kernels::attention
