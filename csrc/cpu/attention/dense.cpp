// torch.ops.sgl_kernels_cpu.attention: checks at the border, then the schedule.
#include <tuple>

#include "attention/call.h"

namespace sgl_kernels::attention {
namespace {

using torch::headeronly::ScalarType;

Type mask_type(const char* op, const Tensor& mask) {
  switch (mask.scalar_type()) {
    case ScalarType::Bool:
      return Type::boolean;
    case ScalarType::Float:
      return Type::f32;
    case ScalarType::BFloat16:
      return Type::bf16;
    case ScalarType::Half:
      return Type::f16;
    default:
      break;
  }
  STD_TORCH_CHECK(false, op, ": attn_mask has dtype ", torch::headeronly::toString(mask.scalar_type()),
                  "; expected bool (True = attend), float32, bfloat16 or float16. Convert it with .bool() or .float()");
  return Type::f32;
}

// Right-aligned broadcast to (B, Hq, Sq, Sk): a dimension of size 1, or a missing one, has stride 0.
MaskView view_of_mask(const char* op, const Tensor& mask, const Problem& p) {
  STD_TORCH_CHECK(mask.is_cpu(), op, ": attn_mask is not on the CPU; move it there");
  const Type type = mask_type(op, mask);
  const int64_t want[4] = {p.batch, p.heads, p.sq, p.sk};
  int64_t strides[4] = {0, 0, 0, 0};
  const int64_t rank = mask.dim();
  bool fits = rank <= 4;
  for (int64_t i = 0; fits && i < rank; ++i) {
    const int64_t to = 4 - rank + i;
    fits = mask.size(i) == want[to] || mask.size(i) == 1;
    if (mask.size(i) != 1) strides[to] = mask.stride(i) * type_size(type);
  }
  STD_TORCH_CHECK(fits, op, ": attn_mask has shape ", shape_text(mask),
                  "; expected one that broadcasts to (B, Hq, Sq, Sk) = [", want[0], ", ", want[1], ", ", want[2], ", ",
                  want[3], "]");
  return {static_cast<const char*>(mask.const_data_ptr()), type, strides[0], strides[1], strides[2], strides[3]};
}

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     const std::optional<Tensor>& attn_mask, int64_t causal, double scale,
                                     int64_t window_left, int64_t window_right, double softcap, bool return_lse) {
  DenseCall call =
      prepare_dense("attention", q, k, v, attn_mask, causal, scale, window_left, window_right, softcap, return_lse);
  if (!call.empty) run_problem(call.problem);
  return {call.out, call.lse};
}

}  // namespace

DenseCall prepare_dense(const char* op, const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                        const std::optional<Tensor>& attn_mask, int64_t causal, double scale, int64_t window_left,
                        int64_t window_right, double softcap, bool return_lse) {
  const char* axes = "(batch, seqlen, heads, head_dim)";
  const Type type = check_tensor(q_in, op, "q", 4, axes);
  check_tensor(k_in, op, "k", 4, axes);
  check_tensor(v_in, op, "v", 4, axes);
  check_heads(q_in, k_in, v_in, op);
  STD_TORCH_CHECK(q_in.size(0) == k_in.size(0), op, ": q has batch ", q_in.size(0), " but k has ", k_in.size(0),
                  "; expand one of them");
  check_rule(op, causal, window_left, window_right, softcap);
  STD_TORCH_CHECK(q_in.size(1) < kLongest && k_in.size(1) < kLongest, op, ": q and k have ", q_in.size(1), " and ",
                  k_in.size(1), " rows; expected fewer than 2^28");
  check_rows(q_in, k_in, q_in.size(0), q_in.size(1), op);

  DenseCall call{rows_contiguous(q_in), rows_contiguous(k_in), rows_contiguous(v_in), {}, {}, {}, false};
  const Tensor &q = call.q, &k = call.k, &v = call.v;
  Problem& p = call.problem;
  p.type = p.out_type = type;
  p.batch = static_cast<int32_t>(q.size(0));
  p.sq = static_cast<int32_t>(q.size(1));
  p.heads = static_cast<int32_t>(q.size(2));
  p.d = static_cast<int32_t>(q.size(3));
  p.sk = static_cast<int32_t>(k.size(1));
  p.kv_heads = static_cast<int32_t>(k.size(2));
  p.dv = static_cast<int32_t>(v.size(3));
  p.causal = static_cast<int32_t>(causal);
  p.scale = static_cast<float>(scale);
  p.softcap = static_cast<float>(softcap);
  p.window_left = window_left;
  p.window_right = window_right;
  p.q = view_of(q, type);
  p.k = view_of(k, type);
  p.v = view_of(v, type);

  call.out = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2), v.size(3)});
  call.lse = torch::stable::new_empty(q, {return_lse ? p.batch : 0, p.heads, p.sq}, ScalarType::Float);
  p.out = view_of(call.out, type);
  if (return_lse) {
    p.lse = static_cast<float*>(call.lse.mutable_data_ptr());
    p.lse_batch = int64_t{p.heads} * p.sq;
    p.lse_head = p.sq;
  }
  if (attn_mask.has_value()) p.mask = view_of_mask(op, *attn_mask, p);
  call.empty = p.batch == 0 || p.sq == 0 || p.heads == 0;
  return call;
}

Type check_tensor(const Tensor& tensor, const char* op, const char* name, int64_t rank, const char* axes) {
  STD_TORCH_CHECK(tensor.is_cpu(), op, ": ", name, " is not on the CPU; move it there or use another backend");
  STD_TORCH_CHECK(tensor.dim() == rank, op, ": ", name, " has shape ", shape_text(tensor), "; expected ", axes);
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Type::f32;
    case ScalarType::BFloat16:
      return Type::bf16;
    case ScalarType::Half:
      return Type::f16;
    default:
      break;
  }
  STD_TORCH_CHECK(false, op, ": ", name, " has dtype ", torch::headeronly::toString(tensor.scalar_type()),
                  "; expected float32, bfloat16 or float16. Convert it, or use backend 'torch'");
  return Type::f32;
}

void check_heads(const Tensor& q, const Tensor& k, const Tensor& v, const char* op) {
  const bool alike = q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type();
  STD_TORCH_CHECK(alike, op, ": q, k and v have dtypes ", torch::headeronly::toString(q.scalar_type()), ", ",
                  torch::headeronly::toString(k.scalar_type()), " and ", torch::headeronly::toString(v.scalar_type()),
                  "; expected the same for all three");
  const int64_t rank = q.dim(), head = rank - 2, channel = rank - 1;
  for (int64_t i = 0; i < channel; ++i) {
    STD_TORCH_CHECK(k.size(i) == v.size(i), op, ": k has shape ", shape_text(k), " and v ", shape_text(v),
                    "; all but the last dimension must agree");
  }
  STD_TORCH_CHECK(q.size(channel) == k.size(channel) && q.size(channel) > 0, op, ": q has head_dim ", q.size(channel),
                  " and k ", k.size(channel), "; expected the same, 1 or more");
  const bool fits = k.size(head) > 0 ? q.size(head) % k.size(head) == 0 : q.size(head) == 0;
  STD_TORCH_CHECK(fits, op, ": q has ", q.size(head), " heads and k has ", k.size(head),
                  "; the first must be a multiple of the second");
  // Scratch space grows with the head sizes; 32-bit arithmetic on them must not overflow.
  STD_TORCH_CHECK(q.size(channel) <= 65536 && v.size(channel) <= 65536 && q.size(head) < (1 << 24), op, ": head_dim ",
                  q.size(channel), ", value head_dim ", v.size(channel), " or ", q.size(head),
                  " heads is out of range");
}

void check_rows(const Tensor& q, const Tensor& k, int64_t batch, int64_t longest, const char* op) {
  const int64_t head = q.dim() - 2, group = k.size(head) > 0 ? q.size(head) / k.size(head) : 0;
  STD_TORCH_CHECK(batch < (int64_t{1} << 31), op, ": the batch is ", batch, "; expected less than 2^31. Split it");
  STD_TORCH_CHECK(longest == 0 || group < kMostRows / longest, op, ": ", group,
                  " query heads share a key head and have ", longest,
                  " rows each; expected fewer than 2^30 rows in all. Split q along its rows or heads");
}

void check_rule(const char* op, int64_t causal, int64_t window_left, int64_t window_right, double softcap) {
  STD_TORCH_CHECK(causal >= 0 && causal <= 2, op, ": causal is ", causal,
                  "; expected 0 (none), 1 (bottom-right) or 2 (top-left)");
  STD_TORCH_CHECK(window_left >= -1 && window_right >= -1, op, ": the window is (", window_left, ", ", window_right,
                  "); expected -1 (unlimited) or more on each side");
  STD_TORCH_CHECK(softcap >= 0, op, ": softcap is ", softcap, "; expected a positive number, or 0 for none");
}

Tensor rows_contiguous(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.size(last) <= 1 || tensor.stride(last) == 1 ? tensor : torch::stable::contiguous(tensor);
}

Tensor4 view_of(const Tensor& tensor, Type type) {
  const int64_t size = type_size(type), rank = tensor.dim();
  char* data = const_cast<char*>(static_cast<const char*>(tensor.const_data_ptr()));
  const int64_t batch = rank == 4 ? tensor.stride(0) * size : 0;
  return {data, batch, tensor.stride(rank - 3) * size, tensor.stride(rank - 2) * size};
}

std::string shape_text(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

}  // namespace sgl_kernels::attention

STABLE_TORCH_LIBRARY_FRAGMENT(sgl_kernels_cpu, m) {
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor? attn_mask, int causal, float scale, int window_left, "
      "int window_right, float softcap, bool return_lse) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(sgl_kernels_cpu, CPU, m) {
  m.impl("attention", TORCH_BOX(&sgl_kernels::attention::attention));
}
