// Checks of row tensors and the walk over rows.
#include "common/rows.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>
#include <unistd.h>

#include <algorithm>
#include <string>

namespace sgl_kernels {
namespace {

using torch::headeronly::ScalarType;

std::string shape_text(const Tensor& t) {
  std::string text = "[";
  for (int64_t d = 0; d < t.dim(); ++d) {
    text += (d > 0 ? ", " : "") + std::to_string(t.size(d));
  }
  return text + "]";
}

}  // namespace

Dtype row_dtype(const char* op, const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    case ScalarType::Half:
      return Dtype::f16;
    default:
      STD_TORCH_CHECK(false, op, ": ", name, " has a dtype other than float32, bfloat16 and float16; convert it with ",
                      name, ".to(torch.float32)");
      return Dtype::f32;
  }
}

Tensor with_adjacent_columns(const Tensor& t) {
  const bool adjacent = t.dim() == 0 || t.size(-1) <= 1 || t.stride(-1) == 1;
  return adjacent ? t : torch::stable::contiguous(t);
}

std::vector<int64_t> sizes_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end());
}

Tensor empty_contiguous(const Tensor& x, const std::vector<int64_t>& sizes) {
  return torch::stable::new_empty(x, torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()));
}

Output::Output(const char* op, const char* name, const Tensor& x, const std::vector<int64_t>& sizes,
               const OptionalTensor& given)
    : given_(given), written_(given.has_value() ? *given : empty_contiguous(x, sizes)) {
  if (!given.has_value()) {
    return;
  }
  const auto have = given->sizes();
  STD_TORCH_CHECK(std::equal(have.begin(), have.end(), sizes.begin(), sizes.end()), op, ": ", name, " has shape ",
                  shape_text(*given), ", which is not that of the result");
  check_same_dtype(op, name, *given, "x", x);
  if (given->size(-1) > 1 && given->stride(-1) != 1) {
    written_ = empty_contiguous(x, sizes);
  }
}

Tensor Output::finish() const {
  if (!given_.has_value()) {
    return written_;
  }
  if (given_->const_data_ptr() != written_.const_data_ptr()) {
    Tensor given = *given_;
    torch::stable::copy_(given, written_);
  }
  return *given_;
}

void check_same_shape(const char* op, const char* name, const Tensor& t, const char* other, const Tensor& x) {
  const auto have = t.sizes(), want = x.sizes();
  STD_TORCH_CHECK(std::equal(have.begin(), have.end(), want.begin(), want.end()), op, ": ", name, " has shape ",
                  shape_text(t), " but ", other, " has ", shape_text(x), "; they must be equal");
}

void check_same_dtype(const char* op, const char* name, const Tensor& t, const char* other, const Tensor& x) {
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), op, ": ", name, " has another dtype than ", other,
                  "; convert one, for example ", name, ".to(", other, ".dtype)");
}

void check_columns(const char* op, const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() > 0 && x.size(-1) > 0, op, ": ", name, " has shape ", shape_text(x),
                  ", expected (..., D) with D at least 1");
}

ParamTensor::ParamTensor(const char* op, const char* name, const OptionalTensor& t) : name_(name) {
  if (!t.has_value()) {
    return;
  }
  STD_TORCH_CHECK(t->is_cpu(), op, ": ", name, " is not on the CPU; move it with ", name, ".cpu()");
  const bool wide = t->scalar_type() == ScalarType::Double;
  tensor_ = with_adjacent_columns(wide ? torch::stable::to(*t, ScalarType::Float) : *t);
  dtype_ = row_dtype(op, name, *tensor_);
  base_ = static_cast<const char*>(tensor_->const_data_ptr());
}

ParamTensor::ParamTensor(const char* op, const char* name, const OptionalTensor& t, int64_t size)
    : ParamTensor(op, name, t) {
  STD_TORCH_CHECK(!present() || (tensor_->dim() == 1 && tensor_->size(0) == size), op, ": ", name, " has shape ",
                  present() ? shape_text(*tensor_) : "", ", expected [", size, "]");
}

RowPlan::RowPlan(const char* op, const Tensor& x) : op_(op) {
  STD_TORCH_CHECK(x.dim() >= 1 && x.dim() - 1 <= kMaxDims, op, ": x has ", x.dim(), " dimensions, expected 1 to ",
                  kMaxDims + 1, "; merge some with x.flatten()");
  dims_ = static_cast<int>(x.dim() - 1);
  for (int d = 0; d < dims_; ++d) {
    dim_[d].size = x.size(d);
    rows_ *= dim_[d].size;
  }
}

int RowPlan::new_operand(bool held) {
  STD_TORCH_CHECK(operands_ < kMaxOperands, op_, ": more operands than RowPlan holds");
  held_[operands_] = held;
  for (int d = 0; d < dims_; ++d) {
    dim_[d].stride[operands_] = 0;
    dim_[d].span[operands_] = 1;
  }
  return operands_++;
}

int RowPlan::add(const Tensor& t) {
  const int operand = new_operand(false);
  for (int d = 0; d < dims_; ++d) {
    dim_[d].stride[operand] = t.stride(d) * static_cast<int64_t>(t.element_size());
  }
  return operand;
}

int RowPlan::add_table(const Tensor& table) {
  const int operand = new_operand(true);
  const int64_t lead = table.dim() - 1;
  const int first = lead == 1 ? 1 : 0;  // (S, n) begins at x's second dimension
  for (int64_t d = 0; d < lead; ++d) {
    if (table.size(d) > 1) {
      dim_[first + d].stride[operand] = table.stride(d) * static_cast<int64_t>(table.element_size());
    }
  }
  return operand;
}

int RowPlan::add_held(const ParamTensor& param, const Tensor& x) {
  const int operand = new_operand(true);
  if (!param.present()) {
    return operand;
  }
  const Tensor& p = param.tensor();
  const int64_t bytes = static_cast<int64_t>(p.element_size());
  bool fits = p.dim() >= 1 && p.size(-1) == x.size(-1);
  if (fits && p.dim() > 1) {
    const bool per_frame = p.dim() == 4 && x.dim() == 3;
    const bool per_batch = p.dim() == 2 && x.dim() > 2;
    fits = (p.dim() == x.dim() || per_frame || per_batch) && (p.size(0) == 1 || p.size(0) == x.size(0));
    if (fits && p.size(0) > 1) {
      dim_[0].stride[operand] = p.stride(0) * bytes;
    }
    if (fits && per_frame) {
      const int64_t frames = p.size(1);
      fits = p.size(2) == 1 && frames > 0 && x.size(1) % frames == 0;
      if (fits && frames > 1) {
        dim_[1].stride[operand] = p.stride(1) * bytes;
        dim_[1].span[operand] = x.size(1) / frames;
      }
    } else if (fits && !per_batch) {
      for (int d = 1; fits && d < dims_; ++d) {
        fits = p.size(d) == 1 || p.size(d) == x.size(d);
        dim_[d].stride[operand] = p.size(d) == 1 ? 0 : p.stride(d) * bytes;
      }
    }
  }
  STD_TORCH_CHECK(fits, op_, ": ", param.name(), " has shape ", shape_text(p), ", which does not cover x of shape ",
                  shape_text(x), "; expected one of (D,), (B, D), (B, 1, D), (B, S, D), or per frame (B, F, 1, D) ",
                  "with F dividing S");
  return operand;
}

bool RowPlan::mergeable(const Dim& outer, const Dim& inner) const {
  for (int o = 0; o < operands_; ++o) {
    const bool spans = outer.span[o] != 1 || inner.span[o] != 1;
    if (spans || outer.stride[o] != inner.stride[o] * inner.size) {
      return false;
    }
  }
  return true;
}

void RowPlan::finish() {
  int kept = 0;
  for (int d = 0; d < dims_; ++d) {
    if (dim_[d].size == 1) {
      continue;
    }
    if (kept > 0 && mergeable(dim_[kept - 1], dim_[d])) {
      const int64_t size = dim_[kept - 1].size * dim_[d].size;
      dim_[kept - 1] = dim_[d];
      dim_[kept - 1].size = size;
    } else {
      dim_[kept++] = dim_[d];
    }
  }
  dims_ = kept;
}

bool RowPlan::is_dense(int operand, int64_t row_bytes) const {
  return dims_ == 0 || (dims_ == 1 && dim_[0].stride[operand] == row_bytes);
}

bool RowPlan::should_stream(int operand, int64_t moved_bytes, const void* out, int64_t row_bytes) const {
  int64_t steps = row_bytes;
  for (int d = 0; d < dims_; ++d) {
    steps |= dim_[d].stride[operand];
  }
  return sgl_kernels::should_stream(moved_bytes, out, steps);
}

RowPlan::Run RowPlan::run_at(int64_t row, int64_t end) const {
  Run run = {};
  run.rows = end - row;
  for (int d = dims_ - 1; d >= 0; --d) {
    const Dim& dim = dim_[d];
    const int64_t index = row % dim.size;
    row /= dim.size;
    if (d == dims_ - 1) {
      run.rows = std::min(run.rows, dim.size - index);
    }
    for (int o = 0; o < operands_; ++o) {
      run.offset[o] += index / dim.span[o] * dim.stride[o];
      if (d == dims_ - 1 && held_[o] && dim.stride[o] != 0) {
        run.rows = std::min(run.rows, dim.span[o] - index % dim.span[o]);
      }
    }
  }
  return run;
}

bool should_stream(int64_t moved_bytes, const void* out, int64_t row_bytes) {
  // Beyond 32 MiB moved, one core's share of any last-level cache is exceeded: 8 MiB copied at 20 GB/s, 24 MiB at 9
  // on a machine that reports 260 MiB of it.
  static const int64_t threshold = [] {
    const int64_t last_level = sysconf(_SC_LEVEL3_CACHE_SIZE), most = int64_t{32} << 20;
    return last_level > 0 ? std::min(last_level, most) : most;
  }();
  return moved_bytes > threshold && row_bytes % 64 == 0 && reinterpret_cast<uintptr_t>(out) % 64 == 0;
}

}  // namespace sgl_kernels
