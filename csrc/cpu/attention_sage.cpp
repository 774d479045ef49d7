// torch.ops.sgl_kernels_cpu.sage_attention: attention on quantised Q and K, and on V as bytes or floats.
#include <algorithm>

#include "attention_ops.h"
#include "attention_sage_args.h"
#include "isa.h"

namespace sgl_kernels::attention {
namespace {

constexpr int64_t kMostChannels = 1024;

const SageKernels& sage_kernels() {
#if defined(__x86_64__)
  if (has_vnni()) return kSageVnni;
  if (isa_level() >= Isa::avx2) return kSageAvx2;
#endif
  return kSageBaseline;
}

Tensor sage_attention(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& attn_mask,
                      int64_t causal, double scale, int64_t window_left, int64_t window_right, bool int8_values) {
  DenseCall call = prepare_dense("sage_attention", q, k, v, attn_mask, causal, scale, window_left, window_right, 0.0,
                                 false);
  const Problem& p = call.problem;
  if (call.empty) return call.out;
  // Nothing to gain from bytes: no keys, or too few queries to pay for quantising K and V (a decoding step).
  const int64_t rows = int64_t{p.heads / p.kv_heads} * p.sq;
  const bool exact = p.sk == 0 || p.dv == 0 || rows <= kMaxDecodeRows || p.d > kMostChannels || p.dv > kMostChannels;
  if (exact) {
    run_problem(p);
    return call.out;
  }

  const SageKernels& s = sage_kernels();
  const int64_t threads = torch::stable::get_num_threads();
  const SageSizes sizes = s.sizes(p);
  const size_t each = to_pages(sizes.head_bytes);
  const int64_t heads = int64_t{p.batch} * p.kv_heads;
  const Buffer memory = allocate(each * heads);
  const auto of_head = [&](int64_t head) { return memory.get() + each * head; };
  std::atomic<bool> finite{true};
  share_tasks(heads, std::min(threads, heads), [&](size_t t, int64_t) {
    const int32_t b = static_cast<int32_t>(t / p.kv_heads), h = static_cast<int32_t>(t % p.kv_heads);
    if (!s.measure(p, b, h, of_head(t))) finite = false;
  });
  if (!finite) {  // a mean over keys would carry one key's NaN to all
    run_problem(p);
    return call.out;
  }
  share_tasks(heads * sizes.blocks, std::min(threads, heads * sizes.blocks), [&](size_t t, int64_t) {
    const int64_t head = t / sizes.blocks;
    const int32_t b = static_cast<int32_t>(head / p.kv_heads), h = static_cast<int32_t>(head % p.kv_heads);
    s.quantise(p, b, h, static_cast<int32_t>(t % sizes.blocks), of_head(head));
  });
  const std::vector<Task> tasks = plan_chunks(p, s.panel, static_cast<int32_t>(threads));
  int32_t most = 0;
  for (const Task& t : tasks) most = std::max(most, t.row1 - t.row0);
  const size_t scratch_each = to_pages(s.scratch_bytes(p, most));
  const int64_t workers = std::min<int64_t>(threads, tasks.size());
  const Buffer scratch = allocate(scratch_each * workers);
  share_tasks(tasks.size(), workers, [&](size_t t, int64_t worker) {
    const Task& task = tasks[t];
    char* head = of_head(int64_t{task.batch} * p.kv_heads + task.kv_head);
    s.run(p, task, head, int8_values, scratch.get() + scratch_each * worker);
  });
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
