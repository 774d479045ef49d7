// The op: checks, output, threads. It is compiled once, for the baseline, and it alone knows torch.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "choose.h"
#include "common/parallel.h"
#include "common/rows.h"
#include "skeleton/args.h"

namespace sgl_kernels {
namespace {

// The tables, the best first: the first whose instructions are all in force serves.
constinit Choice<skeleton::SkeletonKernels> choice({
#if defined(__x86_64__)
    {level::avx2, skeleton::avx2::kKernels},
#endif
    {level::baseline, skeleton::baseline::kKernels},
});

// x (..., D) in fp32, bf16 or fp16, any strides; the result is contiguous.
Tensor scaled(const Tensor& x, double factor) {
  // Once for each call: the level may change between two, and what one table prepared another cannot read.
  const skeleton::SkeletonKernels& kernels = choice.table();
  // Every message names the op, the argument, what it is and what was expected. Python checks first; what is checked
  // here is what would otherwise read or write outside a tensor.
  check_columns("scaled", "x", x);
  const Dtype dtype = row_dtype("scaled", "x", x);
  const Tensor rows = with_adjacent_columns(x);
  const Tensor out = empty_contiguous(x, sizes_of(x));

  // A plan walks the rows of several tensors at once and merges the dimensions that lie in memory as one.
  RowPlan plan("scaled", x);
  const int from = plan.add(rows), to = plan.add(out);
  plan.finish();
  const char* in = static_cast<const char*>(rows.const_data_ptr());
  char* result = static_cast<char*>(out.mutable_data_ptr());
  const int64_t dim = x.size(-1);
  parallel_rows(plan.rows(), dim, [&](int64_t begin, int64_t end) {
    plan.runs(begin, end, [&](const RowPlan::Run& run) {
      kernels.scale({dtype, in + run.offset[from], plan.step(from), result + run.offset[to], plan.step(to), run.rows,
                     dim, static_cast<float>(factor)});
    });
  });
  return out;
}

}  // namespace
}  // namespace sgl_kernels

// Its name goes into OPS of sgl_kernels/kernels/cpu/loader.py, so that a library without it is told from one with it.
STABLE_TORCH_LIBRARY_FRAGMENT(sgl_kernels_cpu, m) { m.def("scaled(Tensor x, float factor) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(sgl_kernels_cpu, CPU, m) { m.impl("scaled", TORCH_BOX(&sgl_kernels::scaled)); }
