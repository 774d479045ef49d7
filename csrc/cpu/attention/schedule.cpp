// Cuts an attention problem into tasks and runs them on torch's threads.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>

#include "attention/call.h"
#include "choose.h"

namespace sgl_kernels::attention {
namespace {

constinit Choice<AttentionKernels> choice({
#if defined(__x86_64__)
    {level::amx, kAmx},
    {level::avx512bf16 | feature::fast_bf16, kAvx512Bf16},
    {level::avx512, kAvx512},
    {level::avx2, kAvx2},
#endif
    {level::baseline, kBaseline},
});

struct Plan {
  bool decode;
  int32_t heads_per_task, rows_per_task;  // whole query heads, or rows of one
  int32_t splits;
  std::vector<Task> tasks;
};

void add_tasks(Plan& plan, const Problem& p, int32_t batch, int32_t kv_head, int32_t sq, int32_t sk) {
  const int32_t group = p.heads / p.kv_heads;
  const bool merge = sq < kMergeBelow;
  const int32_t run = merge ? group * sq : plan.heads_per_task * sq;
  const int32_t per_split = plan.splits == 1 ? sk : (ceil_div(sk, plan.splits) + 63) / 64 * 64;
  for (int32_t start = 0; start < group * sq; start += run) {
    const int32_t end = std::min(start + run, group * sq), chunks = ceil_div(end - start, plan.rows_per_task);
    for (int32_t c = chunks - 1; c >= 0; --c) {  // under a causal mask the last rows cost most: start with them
      const int32_t row0 = start + c * plan.rows_per_task, row1 = std::min(row0 + plan.rows_per_task, end);
      for (int32_t s = 0; s < plan.splits; ++s) {
        const int32_t key0 = std::min(sk, s * per_split);
        plan.tasks.push_back({batch, kv_head, row0, row1, key0, std::min(sk, key0 + per_split), s});
      }
    }
  }
}

constexpr int32_t kUnlimited = 1 << 30;
constexpr int32_t kFewRows = 256;  // a task of fewer rows spends a tenth of its time and more on packing K and V

// Each task packs its K and V, so the fewer the better: one for each key head. But every thread should get several.
void cut_rows(Plan& plan, const Problem& p, int32_t panel, int32_t threads) {
  const int32_t group = p.heads / p.kv_heads;
  const int64_t key_heads = int64_t{p.batch} * p.kv_heads;
  plan.heads_per_task = group;
  plan.rows_per_task = kUnlimited;
  if (threads == 1) return;
  const int64_t wanted = int64_t{8} * threads;
  const bool merge = p.sq < kMergeBelow;
  if (!merge) {
    while (plan.heads_per_task > 1 && key_heads * ceil_div(group, plan.heads_per_task) < wanted) {
      plan.heads_per_task = (plan.heads_per_task + 1) / 2;
    }
    if (plan.heads_per_task > 1) return;
  }
  const int64_t runs = key_heads * (merge ? 1 : group), run = int64_t{p.sq} * (merge ? group : 1);
  const auto pieces = [&](int64_t tasks, int32_t least) {
    const int32_t rows = ceil_div(run, std::max<int64_t>(1, ceil_div(tasks, runs)));
    return std::max(least, (rows + panel - 1) / panel * panel);
  };
  if (runs >= wanted) return;
  plan.rows_per_task = pieces(wanted, kFewRows);
  if (runs * ceil_div(run, plan.rows_per_task) < 2 * threads) plan.rows_per_task = pieces(2 * threads, panel);
}

Plan plan_rows(const Problem& p, int32_t panel, int32_t threads) {
  Plan plan{};
  plan.splits = 1;
  cut_rows(plan, p, panel, threads);
  const bool merge = p.sq < kMergeBelow;
  const int32_t group = p.heads / p.kv_heads, run = (merge ? group : plan.heads_per_task) * p.sq;
  const int64_t runs = int64_t{p.batch} * p.kv_heads * (merge ? 1 : ceil_div(group, plan.heads_per_task));
  const int64_t tasks = std::max<int64_t>(1, runs * ceil_div(run, plan.rows_per_task)), wanted = 2 * threads;
  if (threads > 1 && p.cu_q == nullptr && tasks < wanted) {
    const int64_t most = std::max<int64_t>(1, p.sk / 768);
    plan.splits = static_cast<int32_t>(std::min<int64_t>(most, ceil_div(wanted, tasks)));
  }
  return plan;
}

void fill(Plan& plan, const Problem& p) {
  for (int32_t b = 0; b < p.batch; ++b) {
    const int32_t sq = p.cu_q == nullptr ? p.sq : static_cast<int32_t>(p.cu_q[b + 1] - p.cu_q[b]);
    const int32_t sk = p.cu_k == nullptr ? p.sk : static_cast<int32_t>(p.cu_k[b + 1] - p.cu_k[b]);
    for (int32_t h = 0; h < p.kv_heads && sq > 0; ++h) add_tasks(plan, p, b, h, sq, sk);
  }
}

Plan plan_problem(const Problem& p, int32_t panel, int32_t threads) {
  if (int64_t{p.heads / p.kv_heads} * p.sq <= kMaxDecodeRows) {
    DecodePlan decode = plan_decode(p, threads);
    return {true, 0, 0, decode.splits, std::move(decode.tasks)};
  }
  Plan plan = plan_rows(p, panel, threads);
  fill(plan, p);
  return plan;
}

void run_tasks(const Problem& p, const AttentionKernels& k, const Plan& plan, int32_t threads) {
  size_t bytes = 0;
  for (const Task& t : plan.tasks) {
    bytes = std::max(bytes, plan.decode ? k.decode_scratch_bytes(p, t) : k.scratch_bytes(p, t.row1 - t.row0));
  }
  const size_t each = to_pages(bytes);
  const int64_t workers = std::min<int64_t>(threads, plan.tasks.size());
  const Buffer scratch = allocate(each * workers);
  const auto run = plan.decode ? k.decode : k.run;
  share_tasks(plan.tasks.size(), workers,
              [&](size_t t, int64_t worker) { run(p, plan.tasks[t], scratch.get() + each * worker); });
}

}  // namespace

void Free::operator()(void* p) const { std::free(p); }

Buffer allocate(size_t bytes) {
  char* p = static_cast<char*>(std::aligned_alloc(kPage, std::max(to_pages(bytes), kPage)));
  STD_TORCH_CHECK(p != nullptr, "attention: out of memory for ", bytes, " bytes of scratch space");
  return Buffer(p);
}

const AttentionKernels& kernels() { return choice.table(); }

void run_problem(const Problem& problem) {
  const AttentionKernels& k = kernels();
  const int32_t threads = static_cast<int32_t>(torch::stable::get_num_threads());
  const Plan plan = plan_problem(problem, k.panel, threads);
  if (plan.tasks.empty()) return;
  if (plan.splits == 1) return run_tasks(problem, k, plan, threads);

  // Parts are whole float results over their own keys, with lse: (split, batch, query, head, channel).
  Problem parts = problem;
  const int64_t rows = int64_t{problem.batch} * problem.heads * problem.sq;
  const size_t row_bytes = static_cast<size_t>(problem.dv) * 4;
  const Buffer out = allocate(row_bytes * rows * plan.splits), lse = allocate(size_t{8} * rows * plan.splits);
  const int64_t bytes = static_cast<int64_t>(row_bytes);
  parts.out = {out.get(), int64_t{problem.heads} * problem.sq * bytes, problem.heads * bytes, bytes};
  parts.out_type = Type::f32;
  parts.out_split = rows * bytes;
  parts.lse = reinterpret_cast<float*>(lse.get());
  parts.sums = parts.lse + rows * plan.splits;
  parts.lse_batch = int64_t{problem.heads} * problem.sq;
  parts.lse_head = problem.sq;
  parts.lse_split = rows;
  run_tasks(parts, k, plan, threads);
  torch::stable::parallel_for(0, rows, 16,
                              [&](int64_t row0, int64_t row1) { k.combine(parts, problem, plan.splits, row0, row1); });
}

}  // namespace sgl_kernels::attention
