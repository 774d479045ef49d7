// Tensors as rows: their checks, and a walk over rows of several tensors of different strides at once.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "rowwise/args.h"

namespace sgl_kernels {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The dtype of a tensor of rows; anything but float32, bfloat16 and float16 is an error naming op and argument.
Dtype row_dtype(const char* op, const char* name, const Tensor& t);

// `t` itself where elements of its last dimension are adjacent, else a contiguous copy.
Tensor with_adjacent_columns(const Tensor& t);

// A fresh contiguous tensor of x's dtype.
Tensor empty_contiguous(const Tensor& x, const std::vector<int64_t>& sizes);
std::vector<int64_t> sizes_of(const Tensor& t);

// Where a result is written: a fresh contiguous tensor, or the one the caller gave, by way of a fresh one where its
// columns are not adjacent. That a given one overlaps no input wrongly is for the caller to see to.
class Output {
 public:
  Output(const char* op, const char* name, const Tensor& x, const std::vector<int64_t>& sizes,
         const OptionalTensor& given);

  const Tensor& tensor() const { return written_; }
  // The result. Call once, when all of tensor() is written.
  Tensor finish() const;

 private:
  OptionalTensor given_;
  Tensor written_;
};

void check_same_shape(const char* op, const char* name, const Tensor& t, const char* other, const Tensor& x);
void check_same_dtype(const char* op, const char* name, const Tensor& t, const char* other, const Tensor& x);
void check_columns(const char* op, const char* name, const Tensor& x);

// A parameter as the kernels read it: adjacent columns, and float64 brought to float32. Holds what it points to.
class ParamTensor {
 public:
  ParamTensor(const char* op, const char* name, const OptionalTensor& t);
  // The same, of shape (size,).
  ParamTensor(const char* op, const char* name, const OptionalTensor& t, int64_t size);

  bool present() const { return tensor_.has_value(); }
  const Tensor& tensor() const { return *tensor_; }
  const char* name() const { return name_; }
  Param at(int64_t offset_bytes) const { return {present() ? base_ + offset_bytes : nullptr, dtype_}; }

 private:
  const char* name_;
  OptionalTensor tensor_;
  const char* base_ = nullptr;
  Dtype dtype_ = Dtype::f32;
};

// The rows (all dimensions but the last) of x, and for each operand where the matching row lies.
class RowPlan {
 public:
  static constexpr int kMaxDims = 8;
  static constexpr int kMaxOperands = 8;

  // Rows [0, n) of a run lie `step` bytes apart in each operand; held operands stay at one row.
  struct Run {
    int64_t offset[kMaxOperands];
    int64_t rows;
  };

  RowPlan(const char* op, const Tensor& x);

  // A tensor of x's leading shape. The answer is its operand number.
  int add(const Tensor& t);
  // A modulation parameter in one of the shapes (D,), (B, D), (B, 1, D), (B, S, D), (B, F, 1, D): a run never
  // spans two rows of it.
  int add_held(const ParamTensor& param, const Tensor& x);
  // A table whose leading dimensions are the first ones of x, (S, n) or (B, S, n) for x (B, S, H, D).
  int add_table(const Tensor& table);
  // Merges dimensions that lie in memory as one. Call once, after the last operand.
  void finish();

  int64_t rows() const { return rows_; }
  int64_t step(int operand) const { return dims_ == 0 ? 0 : dim_[dims_ - 1].stride[operand]; }
  // Whether operand's rows of `row_bytes` follow each other without a gap.
  bool is_dense(int operand, int64_t row_bytes) const;
  // Whether to write operand's rows of `row_bytes`, which lie from `out` on, past the caches: only where what the op
  // moves exceeds them, and each row begins and ends with a cache line.
  bool should_stream(int operand, int64_t moved_bytes, const void* out, int64_t row_bytes) const;

  // f(run) for the rows [begin, end).
  template <class Function>
  void runs(int64_t begin, int64_t end, const Function& f) const {
    while (begin < end) {
      const Run run = run_at(begin, end);
      f(run);
      begin += run.rows;
    }
  }

 private:
  struct Dim {
    int64_t size;
    int64_t stride[kMaxOperands];
    int64_t span[kMaxOperands];  // rows that share one step of the operand (frames)
  };

  int new_operand(bool held);
  bool mergeable(const Dim& outer, const Dim& inner) const;
  Run run_at(int64_t row, int64_t end) const;

  const char* op_;
  int dims_ = 0;
  int operands_ = 0;
  int64_t rows_ = 1;
  bool held_[kMaxOperands] = {};
  Dim dim_[kMaxDims] = {};
};

// Whether to write `out_bytes` of output past the caches: only where what the op moves exceeds them, and rows of
// `row_bytes` from `out` on are aligned to a cache line.
bool should_stream(int64_t moved_bytes, const void* out, int64_t row_bytes);

// Makes what this thread wrote past the caches visible to others.
inline void finish_streaming() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

inline int64_t item_bytes(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

}  // namespace sgl_kernels
