// Shared by the op files of attention: checked views of torch tensors, and the schedule.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>

#include "attention_args.h"

namespace sgl_kernels::attention {

using torch::stable::Tensor;

// The instruction set's kernels for this process.
const Kernels& kernels();

// Checks rank, device and type; `axes` names the dimensions in messages.
Type check_tensor(const Tensor& tensor, const char* op, const char* name, int64_t rank, const char* axes);

// Checks that a tensor has q's type and that the heads and head sizes of q, k and v fit together.
void check_heads(const Tensor& q, const Tensor& k, const Tensor& v, const char* op);

constexpr int64_t kLongest = int64_t{1} << 28;  // sequence lengths are below it

// Checks what decides the visible keys, and softcap.
void check_rule(const char* op, int64_t causal, int64_t window_left, int64_t window_right, double softcap);

// The tensor itself where its last dimension is contiguous, a contiguous copy otherwise.
Tensor rows_contiguous(const Tensor& tensor);

// (B, S, H, D), or (S, H, D) with batch stride 0.
Tensor4 view_of(const Tensor& tensor, Type type);

std::string shape_text(const Tensor& tensor);

// Runs the problem on torch's threads. Deterministic for a given number of threads.
void run_problem(const Problem& problem);

}  // namespace sgl_kernels::attention
