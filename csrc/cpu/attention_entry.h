// The entry points that a file compiled for one instruction set offers, over float products.
#pragma once

#include "attention_blocked.h"
#include "attention_decode.h"

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
    float top = kMinusInf;
    bool nan = false;
    for (int32_t s = 0; s < splits; ++s) {
      const float x = lse[s * parts.lse_split];
      nan |= x != x;
      top = x > top ? x : top;
    }
    const bool empty = top == kMinusInf && !nan;
    float sum = 0;
    for (int32_t s = 0; s < splits; ++s) {
      const float x = lse[s * parts.lse_split];
      if (x != kMinusInf) sum += exp2<5>(splat((x - top) * kLog2e))[0];
    }
    for (int c = 0; c < whole.dv; c += kLanes) {
      const int n = min_int(kLanes, whole.dv - c);
      F o{};
      for (int32_t s = 0; s < splits; ++s) {
        const float x = lse[s * parts.lse_split];
        if (x == kMinusInf) continue;  // saw no key
        const char* p = in + s * parts.out_split + static_cast<size_t>(c) * 4;
        o += exp2<5>(splat((x - top) * kLog2e)) * load_as_float<Type::f32>(p, n);
      }
      const size_t offset = static_cast<size_t>(c) * type_size(whole.out_type);
      store_from_float(out + offset, empty ? F{} : o / sum, whole.out_type, n);
    }
    if (whole.lse != nullptr) {
      const float value = empty ? kMinusInf : top + __builtin_logf(sum);
      whole.lse[batch * whole.lse_batch + head * whole.lse_head + query] = value;
    }
  }
}

}  // namespace
}  // namespace sgl_kernels::attention
