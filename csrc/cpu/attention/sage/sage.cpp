// torch.ops.sgl_kernels_cpu.sage_attention: attention on quantised Q and K, and on V as bytes or floats.
#include <algorithm>

#include "attention/call.h"
#include "attention/sage/args.h"
#include "choose.h"

namespace sgl_kernels::attention {
namespace {

constexpr int64_t kMostChannels = 1024;
constexpr int32_t kTaskRows = 128;

constinit Choice<SageKernels> choice({
#if defined(__x86_64__)
    {level::avx512vnni, kSageVnni},
    {level::avx2, kSageAvx2},
#endif
    {level::baseline, kSageBaseline},
});

// A head's queries in tasks, the same for every head. K and V are packed already, so short tasks lose nothing.
std::vector<Task> tasks_of_head(const Problem& p, int32_t panel, int64_t wanted) {
  const int32_t group = p.heads / p.kv_heads;
  const bool merge = p.sq < panel;  // the query heads that share a key head fill panels together
  const int32_t runs = merge ? 1 : group, run = merge ? group * p.sq : p.sq;
  int32_t rows = kTaskRows;
  while (rows > panel && int64_t{runs} * ((run + rows - 1) / rows) < wanted) rows /= 2;
  std::vector<Task> tasks;
  for (int32_t g = 0; g < runs; ++g) {
    for (int32_t c = (run + rows - 1) / rows - 1; c >= 0; --c) {  // under a causal mask the last rows cost most
      const int32_t row0 = g * run + c * rows;
      tasks.push_back({0, 0, row0, std::min(row0 + rows, (g + 1) * run), 0, p.sk, 0});
    }
  }
  return tasks;
}

// One head after the other, its bytes staying in the cache, as far as every thread has heads enough to work on;
// otherwise all threads share the steps of all heads.
void run_sage(const Problem& p, bool int8_values) {
  const SageKernels& s = choice.table();
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t heads = int64_t{p.batch} * p.kv_heads;
  const bool by_head = heads % threads == 0 || heads >= 4 * threads;
  const std::vector<Task> tasks = tasks_of_head(p, s.panel, by_head ? 1 : (8 * threads + heads - 1) / heads);
  int32_t most = 0;
  for (const Task& t : tasks) most = std::max(most, t.row1 - t.row0);

  const SageSizes sizes = s.sizes(p);
  const int64_t workers = std::min<int64_t>(threads, by_head ? heads : heads * static_cast<int64_t>(tasks.size()));
  const size_t each = to_pages(sizes.head_bytes), scratch_each = to_pages(s.scratch_bytes(p, most));
  const Buffer memory = allocate(each * (by_head ? workers : heads)), scratch = allocate(scratch_each * workers);
  std::atomic<bool> finite{true};
  const auto measure = [&](int64_t head, char* to) {
    if (!s.measure(p, static_cast<int32_t>(head / p.kv_heads), static_cast<int32_t>(head % p.kv_heads), to)) {
      finite = false;
    }
  };
  const auto quantise = [&](int64_t head, int64_t block, char* to) {
    s.quantise(p, static_cast<int32_t>(head / p.kv_heads), static_cast<int32_t>(head % p.kv_heads),
               static_cast<int32_t>(block), to);
  };
  const auto run = [&](int64_t head, Task task, char* from, int64_t worker) {
    task.batch = static_cast<int32_t>(head / p.kv_heads);
    task.kv_head = static_cast<int32_t>(head % p.kv_heads);
    if (!s.run(p, task, from, int8_values, scratch.get() + scratch_each * worker)) finite = false;
  };
  if (by_head) {
    share_tasks(heads, workers, [&](size_t head, int64_t worker) {
      char* mine = memory.get() + each * worker;
      measure(head, mine);
      if (!finite) return;
      for (int64_t b = 0; b < sizes.blocks; ++b) quantise(head, b, mine);
      for (const Task& task : tasks) run(head, task, mine, worker);
    });
  } else {
    const auto of_head = [&](int64_t head) { return memory.get() + each * head; };
    share_tasks(heads, std::min(threads, heads), [&](size_t head, int64_t) { measure(head, of_head(head)); });
    if (finite) {
      const int64_t blocks = heads * sizes.blocks, count = static_cast<int64_t>(tasks.size());
      share_tasks(blocks, std::min(threads, blocks),
                  [&](size_t t, int64_t) { quantise(t / sizes.blocks, t % sizes.blocks, of_head(t / sizes.blocks)); });
      share_tasks(heads * count, workers,
                  [&](size_t t, int64_t worker) { run(t / count, tasks[t % count], of_head(t / count), worker); });
    }
  }
  if (!finite) run_problem(p);  // a mean over keys would carry one key's NaN to all
}

Tensor sage_attention(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& attn_mask,
                      int64_t causal, double scale, int64_t window_left, int64_t window_right, bool int8_values) {
  DenseCall call =
      prepare_dense("sage_attention", q, k, v, attn_mask, causal, scale, window_left, window_right, 0.0, false);
  const Problem& p = call.problem;
  if (call.empty) return call.out;
  // Nothing to gain from bytes: no keys, or too few queries to pay for quantising K and V (a decoding step).
  const int64_t rows = int64_t{p.heads / p.kv_heads} * p.sq;
  const bool exact = p.sk == 0 || p.dv == 0 || rows <= kMaxDecodeRows || p.d > kMostChannels || p.dv > kMostChannels;
  if (exact) {
    run_problem(p);
    return call.out;
  }

  run_sage(p, int8_values);
  return call.out;
}

}  // namespace
}  // namespace sgl_kernels::attention

STABLE_TORCH_LIBRARY_FRAGMENT(sgl_kernels_cpu, m) {
  m.def(
      "sage_attention(Tensor q, Tensor k, Tensor v, Tensor? attn_mask, int causal, float scale, int window_left, "
      "int window_right, bool int8_values) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sgl_kernels_cpu, CPU, m) {
  m.impl("sage_attention", TORCH_BOX(&sgl_kernels::attention::sage_attention));
}
