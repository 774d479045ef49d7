// scale_shift and gate_residual.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/parallel.h"
#include "common/rows.h"

namespace sgl_kernels {
namespace {

struct Request {
  const char* op;
  const Tensor& x;
  const Tensor* residual;
  const ParamTensor& gain;   // scale of 1 + scale, or the gate where there is a residual
  const ParamTensor& shift;  // absent with a residual
  const OptionalTensor& out;
};

Tensor modulated(const Request& request) {
  const RowKernels& k = kernels();
  const Tensor& x = request.x;
  check_columns(request.op, "x", x);
  const Dtype dtype = row_dtype(request.op, "x", x);
  const int64_t dim = x.size(-1), row_bytes = dim * item_bytes(dtype);
  const Tensor rows = with_adjacent_columns(x);
  const bool gated = request.residual != nullptr;
  const Tensor base = gated ? with_adjacent_columns(*request.residual) : rows;
  const Output output(request.op, "out", x, sizes_of(x), request.out);
  const Tensor& out = output.tensor();

  RowPlan plan(request.op, x);
  const int from = plan.add(rows), add = plan.add(base), to = plan.add(out);
  const int held_gain = plan.add_held(request.gain, x), held_shift = plan.add_held(request.shift, x);
  plan.finish();
  const char* in = static_cast<const char*>(rows.const_data_ptr());
  const char* base_in = static_cast<const char*>(base.const_data_ptr());
  char* result = static_cast<char*>(out.mutable_data_ptr());
  const bool stream = plan.should_stream(to, (gated ? 3 : 2) * plan.rows() * row_bytes, result, row_bytes);

  parallel_rows(plan.rows(), dim, [&](int64_t begin, int64_t end) {
    Scratch memory(2 * padded(dim) * 4);
    float* gain = memory.floats();
    float* shift = request.shift.present() ? gain + padded(dim) : nullptr;
    int64_t gain_offset = -1, shift_offset = -1;
    plan.runs(begin, end, [&](const RowPlan::Run& run) {
      if (run.offset[held_gain] != gain_offset || run.offset[held_shift] != shift_offset) {
        gain_offset = run.offset[held_gain];
        shift_offset = run.offset[held_shift];
        const Param none = {nullptr, Dtype::f32};
        if (gated) {
          k.plain({request.gain.at(gain_offset), dtype, false, dim, gain});
        } else {
          k.affine({none, none, request.gain.at(gain_offset), request.shift.at(shift_offset), 0.0f, dtype, dim, gain,
                    shift});
        }
      }
      k.modulate({dtype, stream, in + run.offset[from], plan.step(from), gated ? base_in + run.offset[add] : nullptr,
                  plan.step(add), result + run.offset[to], plan.step(to), run.rows, dim, gain, shift});
    });
  });
  return output.finish();
}

Tensor scale_shift_into(const Tensor& x, OptionalTensor scale, OptionalTensor shift, OptionalTensor out) {
  const char* op = "scale_shift";
  return modulated({op, x, nullptr, ParamTensor(op, "scale", scale), ParamTensor(op, "shift", shift), out});
}

Tensor scale_shift(const Tensor& x, OptionalTensor scale, OptionalTensor shift) {
  return scale_shift_into(x, scale, shift, {});
}

Tensor gate_residual_into(const Tensor& residual, const Tensor& x, const Tensor& gate, OptionalTensor out) {
  const char* op = "gate_residual";
  check_same_shape(op, "residual", residual, "x", x);
  check_same_dtype(op, "residual", residual, "x", x);
  return modulated({op, x, &residual, ParamTensor(op, "gate", gate), ParamTensor(op, "shift", {}), out});
}

Tensor gate_residual(const Tensor& residual, const Tensor& x, const Tensor& gate) {
  return gate_residual_into(residual, x, gate, {});
}

}  // namespace
}  // namespace sgl_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(sgl_kernels_cpu, m) {
  m.def("scale_shift(Tensor x, Tensor? scale, Tensor? shift) -> Tensor");
  m.def("gate_residual(Tensor residual, Tensor x, Tensor gate) -> Tensor");
  // The same into given tensors; null asks for a fresh one.
  m.def("scale_shift_out(Tensor x, Tensor? scale, Tensor? shift, Tensor(a!)? out) -> Tensor(a!)");
  m.def("gate_residual_out(Tensor residual, Tensor x, Tensor gate, Tensor(a!)? out) -> Tensor(a!)");
}

STABLE_TORCH_LIBRARY_IMPL(sgl_kernels_cpu, CPU, m) {
  m.impl("scale_shift", TORCH_BOX(&sgl_kernels::scale_shift));
  m.impl("gate_residual", TORCH_BOX(&sgl_kernels::gate_residual));
  m.impl("scale_shift_out", TORCH_BOX(&sgl_kernels::scale_shift_into));
  m.impl("gate_residual_out", TORCH_BOX(&sgl_kernels::gate_residual_into));
}
