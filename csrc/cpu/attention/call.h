// Shared by the op files of attention: checked views of torch tensors, and the schedule.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attention/args.h"

namespace sgl_kernels::attention {

using torch::stable::Tensor;

// A checked dense call: the tensors that its problem points into, and its results.
struct DenseCall {
  Tensor q, k, v, out, lse;
  Problem problem;
  bool empty;  // nothing to compute
};

DenseCall prepare_dense(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
                        const std::optional<Tensor>& attn_mask, int64_t causal, double scale, int64_t window_left,
                        int64_t window_right, double softcap, bool return_lse);

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Scratch memory: whole pages, so that no two threads' parts share one.
struct Free {
  void operator()(void* p) const;
};
using Buffer = std::unique_ptr<char, Free>;
constexpr size_t kPage = 4096;
constexpr size_t to_pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }
Buffer allocate(size_t bytes);

// Tasks of the decoding kernel, for at most kMaxDecodeRows query rows to a key head.
struct DecodePlan {
  int32_t splits;  // parts that the keys are cut into
  std::vector<Task> tasks;
};
DecodePlan plan_decode(const Problem& problem, int32_t threads);

// Runs body(task, worker) for every task index on at most `workers` of torch's threads.
template <class Body>
void share_tasks(size_t tasks, int64_t workers, const Body& body) {
  std::atomic<size_t> next{0};
  // Which worker runs a task changes nothing in its result, so a shared counter may hand them out.
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
      for (size_t t = next++; t < tasks; t = next++) body(t, w);
    }
  });
}

// The table in force.
const AttentionKernels& kernels();

// Checks rank, device and type; `axes` names the dimensions in messages.
Type check_tensor(const Tensor& tensor, const char* op, const char* name, int64_t rank, const char* axes);

// Checks that a tensor has q's type and that the heads and head sizes of q, k and v fit together.
void check_heads(const Tensor& q, const Tensor& k, const Tensor& v, const char* op);

// Checks that rows can be counted: `batch` sequences of up to `longest` query rows.
void check_rows(const Tensor& q, const Tensor& k, int64_t batch, int64_t longest, const char* op);

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
