// silu_mul, gelu_mul and gelu_tanh.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "common/parallel.h"
#include "common/rows.h"

namespace sgl_kernels {
namespace {

// Dense operands are cut into pieces of this many elements, whatever their rows.
constexpr int64_t kPiece = 1024;

// activation(x) of the first `dim` columns, times `up`, or times x's columns from `dim` on where `halves`.
Tensor activated(const char* op, Activation kind, const Tensor& x, const OptionalTensor& up, bool halves,
                 const OptionalTensor& given) {
  const RowKernels& k = kernels();
  check_columns(op, "x", x);
  const Dtype dtype = row_dtype(op, "x", x);
  STD_TORCH_CHECK(!halves || x.size(-1) % 2 == 0, op, ": x has ", x.size(-1),
                  " columns, expected an even number (gate and up halves)");
  if (up.has_value()) {
    check_same_shape(op, "up", *up, "x", x);
    check_same_dtype(op, "up", *up, "x", x);
  }
  const int64_t dim = halves ? x.size(-1) / 2 : x.size(-1), row_bytes = dim * item_bytes(dtype);
  const bool gated = halves || up.has_value();
  const Tensor rows = with_adjacent_columns(x);
  const Tensor factor = up.has_value() ? with_adjacent_columns(*up) : rows;
  std::vector<int64_t> sizes = sizes_of(x);
  sizes.back() = dim;
  const Output output(op, "out", x, sizes, given);
  const Tensor& out = output.tensor();

  RowPlan plan(op, x);
  const int from = plan.add(rows), times = plan.add(factor), to = plan.add(out);
  plan.finish();
  const char* in = static_cast<const char*>(rows.const_data_ptr());
  const char* factor_in = static_cast<const char*>(factor.const_data_ptr()) + (halves ? row_bytes : 0);
  char* result = static_cast<char*>(out.mutable_data_ptr());
  const int64_t elements = plan.rows() * dim, moved = (gated ? 3 : 2) * plan.rows() * row_bytes;

  if (plan.is_dense(from, row_bytes) && plan.is_dense(times, row_bytes) && plan.is_dense(to, row_bytes)) {
    const int64_t item = item_bytes(dtype);
    const bool stream = should_stream(moved, result, kPiece * item);
    parallel_rows((elements + kPiece - 1) / kPiece, kPiece, [&](int64_t begin, int64_t end) {
      const int64_t offset = begin * kPiece * item, count = std::min(end * kPiece, elements) - begin * kPiece;
      k.activate(
          {dtype, kind, stream, in + offset, 0, gated ? factor_in + offset : nullptr, 0, result + offset, 0, 1, count});
    });
    return output.finish();
  }
  const bool stream = plan.should_stream(to, moved, result, row_bytes);
  parallel_rows(plan.rows(), dim, [&](int64_t begin, int64_t end) {
    plan.runs(begin, end, [&](const RowPlan::Run& run) {
      k.activate({dtype, kind, stream, in + run.offset[from], plan.step(from),
                  gated ? factor_in + run.offset[times] : nullptr, plan.step(times), result + run.offset[to],
                  plan.step(to), run.rows, dim});
    });
  });
  return output.finish();
}

Tensor silu_mul_into(const Tensor& x, OptionalTensor up, OptionalTensor out) {
  return activated("silu_mul", Activation::silu, x, up, !up.has_value(), out);
}

Tensor silu_mul(const Tensor& x, OptionalTensor up) { return silu_mul_into(x, up, {}); }

Tensor gelu_tanh_into(const Tensor& x, OptionalTensor out) {
  return activated("gelu_tanh", Activation::gelu_tanh, x, {}, false, out);
}

Tensor gelu_tanh(const Tensor& x) { return gelu_tanh_into(x, {}); }

Tensor gelu_mul_into(const Tensor& x, OptionalTensor up, std::string approximate, OptionalTensor out) {
  STD_TORCH_CHECK(approximate == "tanh" || approximate == "none", "gelu_mul: approximate is '", approximate,
                  "', expected 'tanh' or 'none'");
  const Activation kind = approximate == "tanh" ? Activation::gelu_tanh : Activation::gelu_erf;
  return activated("gelu_mul", kind, x, up, !up.has_value(), out);
}

Tensor gelu_mul(const Tensor& x, OptionalTensor up, std::string approximate) {
  return gelu_mul_into(x, up, approximate, {});
}

}  // namespace
}  // namespace sgl_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(sgl_kernels_cpu, m) {
  m.def("silu_mul(Tensor x, Tensor? up) -> Tensor");
  m.def("gelu_tanh(Tensor x) -> Tensor");
  m.def("gelu_mul(Tensor x, Tensor? up, str approximate) -> Tensor");
  // The same into given tensors; null asks for a fresh one.
  m.def("silu_mul_out(Tensor x, Tensor? up, Tensor(a!)? out) -> Tensor(a!)");
  m.def("gelu_tanh_out(Tensor x, Tensor(a!)? out) -> Tensor(a!)");
  m.def("gelu_mul_out(Tensor x, Tensor? up, str approximate, Tensor(a!)? out) -> Tensor(a!)");
}

STABLE_TORCH_LIBRARY_IMPL(sgl_kernels_cpu, CPU, m) {
  m.impl("silu_mul", TORCH_BOX(&sgl_kernels::silu_mul));
  m.impl("gelu_tanh", TORCH_BOX(&sgl_kernels::gelu_tanh));
  m.impl("gelu_mul", TORCH_BOX(&sgl_kernels::gelu_mul));
  m.impl("silu_mul_out", TORCH_BOX(&sgl_kernels::silu_mul_into));
  m.impl("gelu_tanh_out", TORCH_BOX(&sgl_kernels::gelu_tanh_into));
  m.impl("gelu_mul_out", TORCH_BOX(&sgl_kernels::gelu_mul_into));
}
