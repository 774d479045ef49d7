// apply_rope and qk_norm_rope.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "common/parallel.h"
#include "common/rows.h"

namespace sgl_kernels {
namespace {

// cos and sin, checked against x (B, S, H, D).
struct Tables {
  Tables(const char* op, const Tensor& x, const OptionalTensor& cos_in, const OptionalTensor& sin_in)
      : cos(op, "cos", cos_in), sin(op, "sin", sin_in) {
    STD_TORCH_CHECK(cos.present() == sin.present(), op, ": cos and sin must both be given or both be None");
    if (!cos.present()) {
      return;
    }
    const Tensor& c = cos.tensor();
    check_same_shape(op, "sin", sin.tensor(), "cos", c);
    const int64_t lead = c.dim() - 1;
    const bool fits = (lead == 1 && c.size(0) == x.size(1)) ||
                      (lead == 2 && (c.size(0) == 1 || c.size(0) == x.size(0)) && c.size(1) == x.size(1));
    STD_TORCH_CHECK(fits && 2 * c.size(-1) <= x.size(3), op, ": cos must be (S, R/2) or (B, S, R/2) with R at most ",
                    "head_dim, for x (B, S, H, head_dim) with S = ", x.size(1), " and head_dim = ", x.size(3));
    rotary = 2 * c.size(-1);
  }

  ParamTensor cos, sin;
  int64_t rotary = 0;
};

// One tensor (B, S, H, D) on its way through norm and rotation.
class Rotation {
 public:
  Rotation(const char* op, const char* name, const Tensor& x, const OptionalTensor& weight, const char* weight_name,
           bool normalise, double eps, const Tables& tables, bool interleaved, const char* out_name,
           const OptionalTensor& given)
      : kernels_(kernels()),
        tables_(tables),
        weight_(op, weight_name, weight, x.size(3)),
        rows_(with_adjacent_columns(x)),
        out_(op, out_name, x, sizes_of(x), given),
        plan_(op, x),
        dtype_(row_dtype(op, name, x)),
        dim_(x.size(3)),
        eps_(static_cast<float>(eps)),
        normalise_(normalise),
        interleaved_(interleaved) {
    from_ = plan_.add(rows_);
    to_ = plan_.add(out_.tensor());
    if (tables.rotary > 0) {
      cos_ = plan_.add_table(tables.cos.tensor());
      sin_ = plan_.add_table(tables.sin.tensor());
    }
    plan_.finish();
    const int64_t row_bytes = dim_ * item_bytes(dtype_);
    stream_ = plan_.should_stream(to_, 2 * plan_.rows() * row_bytes, out_.tensor().const_data_ptr(), row_bytes);
  }

  int64_t rows() const { return dim_ == 0 ? 0 : plan_.rows(); }
  int64_t dim() const { return dim_; }
  Tensor finish() const { return out_.finish(); }

  void run(int64_t begin, int64_t end) const {
    if (begin >= end) {
      return;
    }
    const int64_t table = padded(tables_.rotary / 2);
    Scratch memory((rope_gain_size(dim_) + 2 * table) * 4);
    float* gain = memory.floats();
    float* cos = gain + rope_gain_size(dim_);
    float* sin = cos + table;
    if (normalise_) {
      kernels_.rope_gain({weight_.at(0), dtype_, interleaved_, dim_, tables_.rotary, gain});
    }
    const char* in = static_cast<const char*>(rows_.const_data_ptr());
    char* result = static_cast<char*>(out_.tensor().mutable_data_ptr());
    int64_t cos_offset = -1, sin_offset = -1;
    plan_.runs(begin, end, [&](const RowPlan::Run& run) {
      if (tables_.rotary > 0 && (run.offset[cos_] != cos_offset || run.offset[sin_] != sin_offset)) {
        cos_offset = run.offset[cos_];
        sin_offset = run.offset[sin_];
        const int64_t half = tables_.rotary / 2;
        kernels_.plain({tables_.cos.at(cos_offset), dtype_, interleaved_, half, cos});
        kernels_.plain({tables_.sin.at(sin_offset), dtype_, interleaved_, half, sin});
      }
      kernels_.rope({dtype_, interleaved_, stream_, normalise_, in + run.offset[from_], plan_.step(from_),
                     result + run.offset[to_], plan_.step(to_), run.rows, dim_, tables_.rotary, eps_, gain, cos, sin});
    });
    if (stream_) {
      finish_streaming();  // not in the kernel, which is called for each token
    }
  }

 private:
  const RowKernels& kernels_;
  const Tables& tables_;
  ParamTensor weight_;
  Tensor rows_;
  Output out_;
  RowPlan plan_;
  Dtype dtype_;
  int64_t dim_;
  float eps_;
  bool normalise_, interleaved_, stream_ = false;
  int from_ = 0, to_ = 0, cos_ = 0, sin_ = 0;
};

void check_heads(const char* op, const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": ", name, " has ", x.dim(),
                  " dimensions, expected 4: (batch, seqlen, heads, head_dim)");
}

Tensor apply_rope_into(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved, OptionalTensor out) {
  const char* op = "apply_rope";
  check_heads(op, "x", x);
  const Tables tables(op, x, cos, sin);
  const Rotation rotation(op, "x", x, {}, "weight", false, 0.0, tables, interleaved, "out", out);
  parallel_rows(rotation.rows(), rotation.dim(), [&](int64_t begin, int64_t end) { rotation.run(begin, end); });
  return rotation.finish();
}

Tensor apply_rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved) {
  return apply_rope_into(x, cos, sin, interleaved, {});
}

std::tuple<Tensor, Tensor> qk_norm_rope_into(const Tensor& q, const Tensor& k, OptionalTensor q_weight,
                                             OptionalTensor k_weight, OptionalTensor cos, OptionalTensor sin,
                                             double eps, bool interleaved, OptionalTensor q_out, OptionalTensor k_out) {
  const char* op = "qk_norm_rope";
  check_heads(op, "q", q);
  check_heads(op, "k", k);
  check_same_dtype(op, "k", k, "q", q);
  STD_TORCH_CHECK(q.size(0) == k.size(0) && q.size(1) == k.size(1) && q.size(3) == k.size(3), op,
                  ": q and k differ in batch, seqlen or head_dim; all but the number of heads must agree");
  const Tables tables(op, q, cos, sin);
  const Rotation queries(op, "q", q, q_weight, "q_weight", true, eps, tables, interleaved, "q_out", q_out);
  const Rotation keys(op, "k", k, k_weight, "k_weight", true, eps, tables, interleaved, "k_out", k_out);
  // One partition over the rows of both: a second fork of the threads would cost as much as a small k.
  const int64_t split = queries.rows();
  parallel_rows(split + keys.rows(), queries.dim(), [&](int64_t begin, int64_t end) {
    queries.run(begin, std::min(end, split));
    keys.run(std::max(begin, split) - split, end - split);
  });
  return {queries.finish(), keys.finish()};
}

std::tuple<Tensor, Tensor> qk_norm_rope(const Tensor& q, const Tensor& k, OptionalTensor q_weight,
                                        OptionalTensor k_weight, OptionalTensor cos, OptionalTensor sin, double eps,
                                        bool interleaved) {
  return qk_norm_rope_into(q, k, q_weight, k_weight, cos, sin, eps, interleaved, {}, {});
}

}  // namespace
}  // namespace sgl_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(sgl_kernels_cpu, m) {
  m.def("apply_rope(Tensor x, Tensor cos, Tensor sin, bool interleaved) -> Tensor");
  m.def(
      "qk_norm_rope(Tensor q, Tensor k, Tensor? q_weight, Tensor? k_weight, Tensor? cos, Tensor? sin, float eps, "
      "bool interleaved) -> (Tensor, Tensor)");
  // The same into given tensors; null asks for a fresh one.
  m.def("apply_rope_out(Tensor x, Tensor cos, Tensor sin, bool interleaved, Tensor(a!)? out) -> Tensor(a!)");
  m.def(
      "qk_norm_rope_out(Tensor q, Tensor k, Tensor? q_weight, Tensor? k_weight, Tensor? cos, Tensor? sin, float eps, "
      "bool interleaved, Tensor(a!)? q_out, Tensor(b!)? k_out) -> (Tensor(a!), Tensor(b!))");
}

STABLE_TORCH_LIBRARY_IMPL(sgl_kernels_cpu, CPU, m) {
  m.impl("apply_rope", TORCH_BOX(&sgl_kernels::apply_rope));
  m.impl("qk_norm_rope", TORCH_BOX(&sgl_kernels::qk_norm_rope));
  m.impl("apply_rope_out", TORCH_BOX(&sgl_kernels::apply_rope_into));
  m.impl("qk_norm_rope_out", TORCH_BOX(&sgl_kernels::qk_norm_rope_into));
}
