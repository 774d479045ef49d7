// torch.ops.sgl_kernels_cpu.attention_varlen: sequences packed end to end, (total_tokens, heads, head_dim).
#include <algorithm>
#include <vector>

#include "attention/call.h"

namespace sgl_kernels::attention {
namespace {

using torch::headeronly::ScalarType;

// Reads and checks offsets: 0 first, never falling, none beyond `total` or (between neighbours) `longest`.
std::vector<int64_t> read_offsets(const Tensor& offsets, const char* name, int64_t total, int64_t longest) {
  STD_TORCH_CHECK(offsets.is_cpu() && offsets.dim() == 1 && offsets.size(0) >= 1, "attention_varlen: ", name,
                  " has shape ", shape_text(offsets), "; expected [batch + 1] on the CPU");
  const ScalarType type = offsets.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Int || type == ScalarType::Long, "attention_varlen: ", name, " has dtype ",
                  torch::headeronly::toString(type), "; expected int32 or int64");
  const int64_t count = offsets.size(0), stride = count > 1 ? offsets.stride(0) : 1;
  std::vector<int64_t> values(count);
  for (int64_t i = 0; i < count; ++i) {
    values[i] = type == ScalarType::Int ? static_cast<const int32_t*>(offsets.const_data_ptr())[i * stride]
                                        : static_cast<const int64_t*>(offsets.const_data_ptr())[i * stride];
    const int64_t before = i == 0 ? 0 : values[i - 1];
    const bool fits = i == 0 ? values[i] == 0 : values[i] >= before && values[i] <= total;
    STD_TORCH_CHECK(fits, "attention_varlen: ", name, "[", i, "] is ", values[i],
                    "; expected 0 first, then values that do not fall and are at most ", total,
                    " (the tokens there are)");
    STD_TORCH_CHECK(values[i] - before <= longest, "attention_varlen: ", name, " has a sequence of ",
                    values[i] - before, " tokens at ", i - 1, "; the declared maximum is ", longest);
  }
  return values;
}

Tensor attention_varlen(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const Tensor& cu_seqlens_q,
                        const Tensor& cu_seqlens_k, int64_t max_q, int64_t max_k, int64_t causal, double scale,
                        int64_t window_left, int64_t window_right, double softcap) {
  const char *op = "attention_varlen", *axes = "(total_tokens, heads, head_dim)";
  const Type type = check_tensor(q_in, op, "q", 3, axes);
  check_tensor(k_in, op, "k", 3, axes);
  check_tensor(v_in, op, "v", 3, axes);
  check_heads(q_in, k_in, v_in, op);
  check_rule(op, causal, window_left, window_right, softcap);
  STD_TORCH_CHECK(max_q >= 0 && max_q < kLongest && max_k >= 0 && max_k < kLongest, op, ": max_seqlen is ", max_q,
                  " for q and ", max_k, " for k; expected 0 or more, below 2^28");
  STD_TORCH_CHECK(cu_seqlens_q.dim() == 1 && cu_seqlens_k.dim() == 1 && cu_seqlens_q.size(0) == cu_seqlens_k.size(0),
                  op, ": cu_seqlens_q has shape ", shape_text(cu_seqlens_q), " and cu_seqlens_k ",
                  shape_text(cu_seqlens_k), "; both must be [batch + 1]");
  check_rows(q_in, k_in, cu_seqlens_q.size(0) - 1, max_q, op);
  const std::vector<int64_t> cu_q = read_offsets(cu_seqlens_q, "cu_seqlens_q", q_in.size(0), max_q);
  const std::vector<int64_t> cu_k = read_offsets(cu_seqlens_k, "cu_seqlens_k", k_in.size(0), max_k);

  const Tensor q = rows_contiguous(q_in), k = rows_contiguous(k_in), v = rows_contiguous(v_in);
  Problem p{};
  p.type = p.out_type = type;
  p.batch = static_cast<int32_t>(cu_q.size() - 1);
  p.sq = static_cast<int32_t>(max_q);
  p.sk = static_cast<int32_t>(max_k);
  p.heads = static_cast<int32_t>(q.size(1));
  p.kv_heads = static_cast<int32_t>(k.size(1));
  p.d = static_cast<int32_t>(q.size(2));
  p.dv = static_cast<int32_t>(v.size(2));
  p.causal = static_cast<int32_t>(causal);
  p.scale = static_cast<float>(scale);
  p.softcap = static_cast<float>(softcap);
  p.window_left = window_left;
  p.window_right = window_right;
  p.cu_q = cu_q.data();
  p.cu_k = cu_k.data();
  p.q = view_of(q, type);
  p.k = view_of(k, type);
  p.v = view_of(v, type);

  // Tokens beyond the last sequence belong to no one: they are 0, not whatever the memory held.
  Tensor out = torch::stable::new_empty(q, {q.size(0), q.size(1), v.size(2)});
  p.out = view_of(out, type);
  const int64_t used = cu_q.back() * p.out.seq, bytes = q.size(0) * p.out.seq;
  if (bytes > used) std::fill(p.out.data + used, p.out.data + bytes, 0);
  if (p.heads > 0) run_problem(p);
  return out;
}

}  // namespace
}  // namespace sgl_kernels::attention

STABLE_TORCH_LIBRARY_FRAGMENT(sgl_kernels_cpu, m) {
  m.def(
      "attention_varlen(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, int max_q, "
      "int max_k, int causal, float scale, int window_left, int window_right, float softcap) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sgl_kernels_cpu, CPU, m) {
  m.impl("attention_varlen", TORCH_BOX(&sgl_kernels::attention::attention_varlen));
}
