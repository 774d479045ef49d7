// rms_norm, layer_norm, norm_scale_shift and residual_gate_norm_scale_shift.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>
#include <tuple>

#include "common/parallel.h"
#include "common/rows.h"

namespace sgl_kernels {
namespace {

Norm parse_norm(const char* op, const std::string& norm) {
  STD_TORCH_CHECK(norm == "layer" || norm == "rms", op, ": norm is '", norm, "', expected 'layer' or 'rms'");
  return norm == "layer" ? Norm::layer : Norm::rms;
}

// What turns normalised rows into the result: the norm's own weight and bias, and the modulation.
struct Modulation {
  Modulation(const char* op, int64_t dim, const OptionalTensor& weight, const OptionalTensor& bias,
             const OptionalTensor& scale, const OptionalTensor& shift, double weight_offset)
      : weight(op, "weight", weight, dim),
        bias(op, "bias", bias, dim),
        scale(op, "scale", scale),
        shift(op, "shift", shift),
        weight_offset(static_cast<float>(weight_offset)) {}

  ParamTensor weight, bias, scale, shift;
  float weight_offset;
};

// Prepares gain and shift once per distinct pair of parameter rows, or takes weight and bias as they are.
class Affine {
 public:
  Affine(const RowKernels& kernels, const Modulation& modulation, Norm norm, Dtype order, int64_t dim, float* memory)
      : kernels_(kernels), modulation_(modulation), order_(order), dim_(dim), gain_(memory) {
    const bool shifted = norm == Norm::layer || modulation.bias.present() || modulation.shift.present();
    shift_ = shifted ? memory + padded(dim) : nullptr;
    // For one row of 16384 fp32 columns the preparation cost as much as the norm.
    const bool plain = is_plain(modulation.weight) && !modulation.scale.present() && !modulation.shift.present() &&
                       modulation.weight_offset == 0.0f && (!shifted || is_plain(modulation.bias));
    if (plain && order != Dtype::bf16 && dim % kMaxBlock == 0) {
      ready_gain_ = static_cast<const float*>(modulation.weight.at(0).data);
      ready_shift_ = shifted ? static_cast<const float*>(modulation.bias.at(0).data) : nullptr;
    }
  }
  static int64_t floats(int64_t dim) { return 2 * padded(dim); }

  void at(int64_t scale_offset, int64_t shift_offset) {
    if (ready_gain_ != nullptr || (scale_offset == scale_offset_ && shift_offset == shift_offset_)) {
      return;
    }
    scale_offset_ = scale_offset;
    shift_offset_ = shift_offset;
    kernels_.affine({modulation_.weight.at(0), modulation_.bias.at(0), modulation_.scale.at(scale_offset),
                     modulation_.shift.at(shift_offset), modulation_.weight_offset, order_, dim_, gain_, shift_});
  }
  const float* gain() const { return ready_gain_ != nullptr ? ready_gain_ : gain_; }
  const float* shift() const { return ready_gain_ != nullptr ? ready_shift_ : shift_; }

 private:
  static bool is_plain(const ParamTensor& param) { return param.present() && param.at(0).dtype == Dtype::f32; }

  const RowKernels& kernels_;
  const Modulation& modulation_;
  const float *ready_gain_ = nullptr, *ready_shift_ = nullptr;
  Dtype order_;
  int64_t dim_;
  float* gain_;
  float* shift_;
  int64_t scale_offset_ = -1, shift_offset_ = -1;
};

Tensor normalised(const char* op, const Tensor& x, const Modulation& modulation, Norm norm, double eps,
                  const OptionalTensor& given) {
  const RowKernels& k = kernels();
  const Dtype dtype = row_dtype(op, "x", x);
  const int64_t dim = x.size(-1), row_bytes = dim * item_bytes(dtype);
  const Tensor rows = with_adjacent_columns(x);
  const Output output(op, "out", x, sizes_of(x), given);
  const Tensor& out = output.tensor();
  RowPlan plan(op, x);
  const int from = plan.add(rows), to = plan.add(out);
  const int scale = plan.add_held(modulation.scale, x), shift = plan.add_held(modulation.shift, x);
  plan.finish();
  const char* in = static_cast<const char*>(rows.const_data_ptr());
  char* result = static_cast<char*>(out.mutable_data_ptr());
  const bool stream = plan.should_stream(to, 2 * plan.rows() * row_bytes, result, row_bytes);
  parallel_rows(plan.rows(), dim, [&](int64_t begin, int64_t end) {
    Scratch memory(Affine::floats(dim) * 4);
    Affine affine(k, modulation, norm, dtype, dim, memory.floats());
    plan.runs(begin, end, [&](const RowPlan::Run& run) {
      affine.at(run.offset[scale], run.offset[shift]);
      k.norm({dtype, norm, stream, in + run.offset[from], plan.step(from), result + run.offset[to], plan.step(to),
              run.rows, dim, static_cast<float>(eps), affine.gain(), affine.shift()});
    });
  });
  return output.finish();
}

Tensor rms_norm_into(const Tensor& x, OptionalTensor weight, double eps, double weight_offset, OptionalTensor out) {
  check_columns("rms_norm", "x", x);
  const Modulation modulation("rms_norm", x.size(-1), weight, {}, {}, {}, weight_offset);
  return normalised("rms_norm", x, modulation, Norm::rms, eps, out);
}

Tensor rms_norm(const Tensor& x, OptionalTensor weight, double eps, double weight_offset) {
  return rms_norm_into(x, weight, eps, weight_offset, {});
}

Tensor layer_norm_into(const Tensor& x, OptionalTensor weight, OptionalTensor bias, double eps, OptionalTensor out) {
  check_columns("layer_norm", "x", x);
  const Modulation modulation("layer_norm", x.size(-1), weight, bias, {}, {}, 0.0);
  return normalised("layer_norm", x, modulation, Norm::layer, eps, out);
}

Tensor layer_norm(const Tensor& x, OptionalTensor weight, OptionalTensor bias, double eps) {
  return layer_norm_into(x, weight, bias, eps, {});
}

Tensor norm_scale_shift_into(const Tensor& x, OptionalTensor scale, OptionalTensor shift, OptionalTensor weight,
                             OptionalTensor bias, double eps, std::string norm, OptionalTensor out) {
  const char* op = "norm_scale_shift";
  check_columns(op, "x", x);
  const Modulation modulation(op, x.size(-1), weight, bias, scale, shift, 0.0);
  return normalised(op, x, modulation, parse_norm(op, norm), eps, out);
}

Tensor norm_scale_shift(const Tensor& x, OptionalTensor scale, OptionalTensor shift, OptionalTensor weight,
                        OptionalTensor bias, double eps, std::string norm) {
  return norm_scale_shift_into(x, scale, shift, weight, bias, eps, norm, {});
}

std::tuple<Tensor, Tensor> residual_into(const Tensor& residual, const Tensor& x, OptionalTensor gate,
                                         OptionalTensor scale, OptionalTensor shift, OptionalTensor weight,
                                         OptionalTensor bias, double eps, std::string norm_name,
                                         OptionalTensor given_out, OptionalTensor given_sums) {
  const RowKernels& k = kernels();
  const char* op = "residual_gate_norm_scale_shift";
  check_columns(op, "x", x);
  check_same_shape(op, "residual", residual, "x", x);
  check_same_dtype(op, "residual", residual, "x", x);
  const Norm norm = parse_norm(op, norm_name);
  const Dtype dtype = row_dtype(op, "x", x);
  const int64_t dim = x.size(-1), row_bytes = dim * item_bytes(dtype);
  const Modulation modulation(op, dim, weight, bias, scale, shift, 0.0);
  const ParamTensor gate_param(op, "gate", gate);
  const Tensor x_rows = with_adjacent_columns(x), residual_rows = with_adjacent_columns(residual);
  const Output normed(op, "out", x, sizes_of(x), given_out), summed(op, "residual_out", x, sizes_of(x), given_sums);
  const Tensor &out = normed.tensor(), &residual_out = summed.tensor();

  RowPlan plan(op, x);
  const int from = plan.add(x_rows), base = plan.add(residual_rows), to = plan.add(out), sum = plan.add(residual_out);
  const int held_scale = plan.add_held(modulation.scale, x), held_shift = plan.add_held(modulation.shift, x);
  const int held_gate = plan.add_held(gate_param, x);
  plan.finish();
  const char* x_in = static_cast<const char*>(x_rows.const_data_ptr());
  const char* residual_in = static_cast<const char*>(residual_rows.const_data_ptr());
  char* result = static_cast<char*>(out.mutable_data_ptr());
  char* sums = static_cast<char*>(residual_out.mutable_data_ptr());
  const int64_t moved = 4 * plan.rows() * row_bytes;
  const bool stream =
      plan.should_stream(to, moved, result, row_bytes) && plan.should_stream(sum, moved, sums, row_bytes);

  parallel_rows(plan.rows(), 2 * dim, [&](int64_t begin, int64_t end) {
    const int64_t affine_bytes = Affine::floats(dim) * 4, gate_bytes = padded(dim) * 4;
    Scratch memory(affine_bytes + gate_bytes + (stream ? kResidualRows * padded(dim) * item_bytes(dtype) : 0));
    Affine affine(k, modulation, norm, dtype, dim, memory.floats());
    float* prepared_gate = reinterpret_cast<float*>(memory.bytes() + affine_bytes);
    char* keep = memory.bytes() + affine_bytes + gate_bytes;
    int64_t gate_offset = -1;
    plan.runs(begin, end, [&](const RowPlan::Run& run) {
      affine.at(run.offset[held_scale], run.offset[held_shift]);
      if (run.offset[held_gate] != gate_offset) {
        gate_offset = run.offset[held_gate];
        k.plain({gate_param.at(gate_offset), dtype, false, dim, prepared_gate});
      }
      const NormArgs norm_args = {dtype,
                                  norm,
                                  stream,
                                  nullptr,
                                  0,
                                  result + run.offset[to],
                                  plan.step(to),
                                  run.rows,
                                  dim,
                                  static_cast<float>(eps),
                                  affine.gain(),
                                  affine.shift()};
      k.residual_norm({norm_args, residual_in + run.offset[base], plan.step(base), x_in + run.offset[from],
                       plan.step(from), sums + run.offset[sum], plan.step(sum), prepared_gate, keep});
    });
  });
  return {normed.finish(), summed.finish()};
}

std::tuple<Tensor, Tensor> residual_gate_norm_scale_shift(const Tensor& residual, const Tensor& x, OptionalTensor gate,
                                                          OptionalTensor scale, OptionalTensor shift,
                                                          OptionalTensor weight, OptionalTensor bias, double eps,
                                                          std::string norm) {
  return residual_into(residual, x, gate, scale, shift, weight, bias, eps, norm, {}, {});
}

}  // namespace
}  // namespace sgl_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(sgl_kernels_cpu, m) {
  m.def("rms_norm(Tensor x, Tensor? weight, float eps, float weight_offset) -> Tensor");
  m.def("layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> Tensor");
  m.def(
      "norm_scale_shift(Tensor x, Tensor? scale, Tensor? shift, Tensor? weight, Tensor? bias, float eps, str norm) "
      "-> Tensor");
  m.def(
      "residual_gate_norm_scale_shift(Tensor residual, Tensor x, Tensor? gate, Tensor? scale, Tensor? shift, "
      "Tensor? weight, Tensor? bias, float eps, str norm) -> (Tensor, Tensor)");
  // The same into given tensors; null asks for a fresh one.
  m.def("rms_norm_out(Tensor x, Tensor? weight, float eps, float weight_offset, Tensor(a!)? out) -> Tensor(a!)");
  m.def("layer_norm_out(Tensor x, Tensor? weight, Tensor? bias, float eps, Tensor(a!)? out) -> Tensor(a!)");
  m.def(
      "norm_scale_shift_out(Tensor x, Tensor? scale, Tensor? shift, Tensor? weight, Tensor? bias, float eps, "
      "str norm, Tensor(a!)? out) -> Tensor(a!)");
  m.def(
      "residual_gate_norm_scale_shift_out(Tensor residual, Tensor x, Tensor? gate, Tensor? scale, Tensor? shift, "
      "Tensor? weight, Tensor? bias, float eps, str norm, Tensor(a!)? out, Tensor(b!)? residual_out) "
      "-> (Tensor(a!), Tensor(b!))");
}

STABLE_TORCH_LIBRARY_IMPL(sgl_kernels_cpu, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&sgl_kernels::rms_norm));
  m.impl("layer_norm", TORCH_BOX(&sgl_kernels::layer_norm));
  m.impl("norm_scale_shift", TORCH_BOX(&sgl_kernels::norm_scale_shift));
  m.impl("residual_gate_norm_scale_shift", TORCH_BOX(&sgl_kernels::residual_gate_norm_scale_shift));
  m.impl("rms_norm_out", TORCH_BOX(&sgl_kernels::rms_norm_into));
  m.impl("layer_norm_out", TORCH_BOX(&sgl_kernels::layer_norm_into));
  m.impl("norm_scale_shift_out", TORCH_BOX(&sgl_kernels::norm_scale_shift_into));
  m.impl("residual_gate_norm_scale_shift_out", TORCH_BOX(&sgl_kernels::residual_into));
}
