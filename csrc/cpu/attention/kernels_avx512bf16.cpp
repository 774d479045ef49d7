// Attention on bf16 with vdpbf16ps. Other types, and decoding (bound by memory), are the AVX-512 kernels.
#include "attention/bf16-inl.h"

namespace sgl_kernels::attention {
namespace {

struct DotBf16WithLse : DotBf16 {  // lse is a float32 result: its sums need the full exponential
  static constexpr int kDegree = 5;
};

size_t scratch_bytes(const Problem& p, int32_t rows) {
  return p.type == Type::bf16 ? blocked_scratch<DotBf16>(p, rows) : kAvx512.scratch_bytes(p, rows);
}

void run(const Problem& p, const Task& task, char* scratch) {
  if (p.type != Type::bf16) return kAvx512.run(p, task, scratch);
  if (p.lse == nullptr) return run_blocked<DotBf16, Type::bf16>(p, task, scratch);
  run_blocked<DotBf16WithLse, Type::bf16>(p, task, scratch);
}

size_t decode_bytes(const Problem& p, const Task& task) { return kAvx512.decode_scratch_bytes(p, task); }
void decode(const Problem& p, const Task& task, char* scratch) { kAvx512.decode(p, task, scratch); }

void combine(const Problem& parts, const Problem& whole, int32_t splits, int64_t row0, int64_t row1) {
  kAvx512.combine(parts, whole, splits, row0, row1);
}

}  // namespace

const AttentionKernels kAvx512Bf16 = {kPanel, scratch_bytes, run, decode_bytes, decode, combine};

}  // namespace sgl_kernels::attention
