// torch.ops.sgl_kernels_cpu.attention_heads_first: tensors as torch's SDPA has them, (batch, heads, seqlen, head_dim),
// and a result with the memory order that torch's would have. The views are made here, at a quarter of their price.
#include "attention/call.h"

namespace sgl_kernels::attention {
namespace {

// like_query: the result has the strides of torch.empty_like(q), whose last one must be 1; else it is contiguous.
Tensor attention_heads_first(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& attn_mask,
                             int64_t causal, double scale, bool like_query) {
  const char* op = "attention_heads_first";
  STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4, op, ": q has shape ", shape_text(q),
                  "; expected (batch, heads, seqlen, head_dim), and the same of k and v");
  DenseCall call = prepare_dense(op, torch::stable::transpose(q, 1, 2), torch::stable::transpose(k, 1, 2),
                                 torch::stable::transpose(v, 1, 2), attn_mask, causal, scale, -1, -1, 0.0, false);
  if (like_query) {
    STD_TORCH_CHECK(q.size(3) == v.size(3), op, ": like_query is true, but q has head_dim ", q.size(3), " and v ",
                    v.size(3));
    call.out = torch::stable::empty_like(q);
    STD_TORCH_CHECK(call.out.size(3) <= 1 || call.out.stride(3) == 1, op, ": like_query is true, but q has strides ",
                    q.stride(0), ", ", q.stride(1), ", ", q.stride(2), ", ", q.stride(3), "; expected 1 at the end");
  } else {
    call.out = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2), v.size(3)});
  }
  const Tensor4 out = view_of(call.out, call.problem.type);  // its "seq" is dimension 1, its "head" dimension 2
  call.problem.out = {out.data, out.batch, out.head, out.seq};
  if (!call.empty) run_problem(call.problem);
  return call.out;
}

}  // namespace
}  // namespace sgl_kernels::attention

STABLE_TORCH_LIBRARY_FRAGMENT(sgl_kernels_cpu, m) {
  m.def(
      "attention_heads_first(Tensor q, Tensor k, Tensor v, Tensor? attn_mask, int causal, float scale, "
      "bool like_query) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sgl_kernels_cpu, CPU, m) {
  m.impl("attention_heads_first", TORCH_BOX(&sgl_kernels::attention::attention_heads_first));
}
