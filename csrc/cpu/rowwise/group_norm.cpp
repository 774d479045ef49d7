// group_norm, with SiLU if asked, of (N, C, ...) tensors in channels-first and channels-last memory.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "common/parallel.h"
#include "common/rows.h"

namespace sgl_kernels {
namespace {

constexpr const char* kOp = "group_norm";
// Statistics are taken twice over pieces that stay in the first-level cache (channels first) or the second-level
// (channels last, where a piece is whole positions), then merged: memory is read once for them.
constexpr int64_t kPieceElements = 4096;
constexpr int64_t kPieceBytes = 128 << 10;

// How a tensor lies in memory: all positions of a channel adjacent, or all channels of a position.
struct Layout {
  bool first = false, last = false;
  int64_t batch_step = 0, position_step = 0;  // in bytes
};

Layout layout_of(const Tensor& x) {
  const int64_t item = static_cast<int64_t>(x.element_size()), channels = x.size(1);
  int64_t positions = 1, step = 1;
  bool collapses = true;
  for (int64_t d = x.dim() - 1; d >= 2; --d) {
    if (x.size(d) == 1) {
      continue;
    }
    if (positions == 1) {
      step = x.stride(d);
    }
    collapses = collapses && x.stride(d) == step * positions;
    positions *= x.size(d);
  }
  Layout layout;
  layout.batch_step = x.stride(0) * item;
  layout.position_step = step * item;
  const bool adjacent_channels = channels == 1 || x.stride(1) == 1;
  layout.last = adjacent_channels && (positions == 1 || (collapses && step >= channels && channels > 1));
  layout.first = collapses && (positions == 1 || step == 1) && (channels == 1 || x.stride(1) == positions);
  return layout;
}

// Chan's update: the moments of the union of two sets.
struct Accumulated {
  double count = 0.0, mean = 0.0, squares = 0.0;

  void merge(double other_count, const Moments& other) {
    const double total = count + other_count, delta = other.mean - mean;
    mean += delta * (other_count / total);
    squares += other.squares + delta * delta * (count * other_count / total);
    count = total;
  }
  float rounded_mean() const { return static_cast<float>(mean); }
  double inverse(double eps) const { return 1.0 / std::sqrt(squares / count + eps); }
};

// The map of one channel: (x * lift - mean * lift) * gain + shift.
struct Map {
  // A mean from which the distance of a finite element may be no float, and a gain that is none: rows may be as small
  // as float32 goes where eps is 0.
  static constexpr float kFarMean = 0x1p102f;
  static constexpr double kLargeGain = 0x1p100, kSmallGain = 0x1p-100;

  Map(const Accumulated& statistics, double eps, float weight, float bias) : mean(statistics.rounded_mean()) {
    const double whole = weight * statistics.inverse(eps), size = std::fabs(whole);
    if (std::fabs(mean) >= kFarMean) {
      lift = 0.25f;
    } else if (size > kLargeGain) {
      lift = 0x1p64f;
    } else if (size < kSmallGain && size > 0.0) {
      lift = 0x1p-64f;
    }
    gain = static_cast<float>(whole / lift);
    // With what is missing because the mean is rounded: half a unit of a large mean is not little.
    shift = bias + static_cast<float>((mean - statistics.mean) * whole);
  }

  float mean, gain, shift, lift = 1.0f;
};

struct Request {
  const RowKernels& kernels;
  Dtype dtype;
  Activation activation;
  int64_t batch, channels, positions, groups;
  double eps;
  const char* x;
  char* out;
  Layout from, to;
  std::vector<float> weight, bias;  // empty for none
  bool stream;

  Map map_of(int64_t channel, const Accumulated& statistics) const {
    return {statistics, eps, weight.empty() ? 1.0f : weight[channel], bias.empty() ? 0.0f : bias[channel]};
  }
  int64_t width() const { return channels / groups; }
  float small() const { return static_cast<float>(eps); }
  int64_t item() const { return item_bytes(dtype); }
};

void apply_channels_first(const Request& r, int64_t n, int64_t channel, const Accumulated& statistics, int64_t begin,
                          int64_t end) {
  const Map map = r.map_of(channel, statistics);
  const int64_t offset = (channel * r.positions + begin) * r.item();
  const char* from = r.x + n * r.from.batch_step + offset;
  r.kernels.channel({r.dtype, r.activation, r.stream, from, r.out + n * r.to.batch_step + offset, end - begin, map.mean,
                     map.gain, map.shift, map.lift});
}

// One group after another: the second reading finds a group of ordinary size in the caches.
void channels_first_by_group(const Request& r) {
  const int64_t elements = r.width() * r.positions;
  parallel_rows(r.batch * r.groups, elements, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / r.groups, group = i % r.groups;
      const char* x = r.x + n * r.from.batch_step + group * elements * r.item();
      Accumulated statistics;
      for (int64_t e = 0; e < elements; e += kPieceElements) {
        const int64_t count = std::min(kPieceElements, elements - e);
        statistics.merge(static_cast<double>(count), r.kernels.moments({r.dtype, x + e * r.item(), count, r.small()}));
      }
      for (int64_t c = group * r.width(); c < (group + 1) * r.width(); ++c) {
        apply_channels_first(r, n, c, statistics, 0, r.positions);
      }
    }
  });
}

// All groups piece by piece, for few large groups on several threads. The sums are the same to the bit.
void channels_first_by_piece(const Request& r) {
  const int64_t elements = r.width() * r.positions, groups = r.batch * r.groups;
  const int64_t pieces = (elements + kPieceElements - 1) / kPieceElements;
  std::vector<Moments> parts(groups * pieces);
  parallel_rows(groups * pieces, kPieceElements, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / pieces / r.groups, group = i / pieces % r.groups, e = i % pieces * kPieceElements;
      const char* x = r.x + n * r.from.batch_step + (group * elements + e) * r.item();
      parts[i] = r.kernels.moments({r.dtype, x, std::min(kPieceElements, elements - e), r.small()});
    }
  });
  std::vector<Accumulated> statistics(groups);
  for (int64_t i = 0; i < groups * pieces; ++i) {
    const int64_t count = std::min(kPieceElements, elements - i % pieces * kPieceElements);
    statistics[i / pieces].merge(static_cast<double>(count), parts[i]);
  }
  const int64_t cuts = (r.positions + kPieceElements - 1) / kPieceElements;
  parallel_rows(r.batch * r.channels * cuts, std::min(kPieceElements, r.positions), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / cuts / r.channels, c = i / cuts % r.channels, p = i % cuts * kPieceElements;
      apply_channels_first(r, n, c, statistics[n * r.groups + c / r.width()], p,
                           std::min(p + kPieceElements, r.positions));
    }
  });
}

void channels_last(const Request& r) {
  const int64_t rows = std::clamp<int64_t>(kPieceBytes / (r.channels * r.item()), 8, 4096);
  const int64_t pieces = (r.positions + rows - 1) / rows, table = padded(r.channels);
  std::vector<Moments> parts(r.batch * pieces * r.groups);
  parallel_rows(r.batch * pieces, rows * r.channels, [&](int64_t begin, int64_t end) {
    Scratch memory(2 * table * 4);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / pieces, p = i % pieces * rows;
      r.kernels.last_moments({r.dtype, r.x + n * r.from.batch_step + p * r.from.position_step, r.from.position_step,
                              std::min(rows, r.positions - p), r.channels, r.groups, r.small(), memory.floats(),
                              &parts[i * r.groups]});
    }
  });
  // Per image the mean, gain and shift of each channel, in block order.
  Scratch tables(r.batch * 3 * table * 4);
  std::vector<float> plain(3 * table, 0.0f), lift(table, 1.0f), lifts;  // lifts: of all images, if any is not 1
  for (int64_t n = 0; n < r.batch; ++n) {
    for (int64_t group = 0; group < r.groups; ++group) {
      Accumulated statistics;
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t count = std::min(rows, r.positions - piece * rows) * r.width();
        statistics.merge(static_cast<double>(count), parts[(n * pieces + piece) * r.groups + group]);
      }
      for (int64_t c = group * r.width(); c < (group + 1) * r.width(); ++c) {
        const Map map = r.map_of(c, statistics);
        plain[c] = map.mean;
        plain[table + c] = map.gain;
        plain[2 * table + c] = map.shift;
        lift[c] = map.lift;
        if (map.lift != 1.0f && lifts.empty()) {
          lifts.assign(r.batch * table, 1.0f);
        }
      }
    }
    if (!lifts.empty()) {
      r.kernels.plain({{lift.data(), Dtype::f32}, r.dtype, false, r.channels, lifts.data() + n * table});
    }
    for (int64_t part = 0; part < 3; ++part) {
      const Param from = {plain.data() + part * table, Dtype::f32};
      r.kernels.plain({from, r.dtype, false, r.channels, tables.floats() + (n * 3 + part) * table});
    }
  }
  parallel_rows(r.batch * r.positions, r.channels, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t n = begin / r.positions, p = begin % r.positions, count = std::min(end - begin, r.positions - p);
      const float* mean = tables.floats() + n * 3 * table;
      r.kernels.last_apply({r.dtype, r.activation, r.stream, r.x + n * r.from.batch_step + p * r.from.position_step,
                            r.from.position_step, r.out + n * r.to.batch_step + p * r.to.position_step,
                            r.to.position_step, count, r.channels, mean, mean + table, mean + 2 * table,
                            lifts.empty() ? nullptr : lifts.data() + n * table});
      begin += count;
    }
  });
}

std::vector<float> as_floats(const RowKernels& kernels, const ParamTensor& param, int64_t size) {
  std::vector<float> values;
  if (param.present()) {
    values.resize(padded(size));
    kernels.plain({param.at(0), Dtype::f32, true, size, values.data()});
  }
  return values;
}

Tensor group_norm_into(const Tensor& x, int64_t num_groups, OptionalTensor weight, OptionalTensor bias, double eps,
                       std::string activation, OptionalTensor given) {
  STD_TORCH_CHECK(x.dim() >= 2, kOp, ": x has ", x.dim(), " dimensions, expected at least 2: (batch, channels, ...)");
  const int64_t channels = x.size(1);
  STD_TORCH_CHECK(num_groups > 0 && channels % num_groups == 0, kOp, ": num_groups is ", num_groups,
                  ", expected a divisor of the ", channels, " channels of x");
  STD_TORCH_CHECK(activation == "none" || activation == "silu", kOp, ": activation is '", activation,
                  "', expected 'none' or 'silu'");
  const Dtype dtype = row_dtype(kOp, "x", x);
  const ParamTensor weight_param(kOp, "weight", weight, channels), bias_param(kOp, "bias", bias, channels);
  Tensor out = given.has_value() ? *given : torch::stable::empty_like(x);
  check_same_shape(kOp, "out", out, "x", x);
  check_same_dtype(kOp, "out", out, "x", x);
  if (x.numel() == 0) {
    return out;
  }
  // A layout that is neither (or differs between x and out) goes through contiguous copies.
  Layout from = layout_of(x), to = layout_of(out);
  const bool direct = (from.last && to.last) || (from.first && to.first);
  const Tensor source = direct ? x : torch::stable::contiguous(x);
  Tensor target = direct ? out : empty_contiguous(x, sizes_of(x));
  if (!direct) {
    from = layout_of(source);
    to = layout_of(target);
  }
  const bool last = from.last && to.last;
  const int64_t item = item_bytes(dtype), positions = x.numel() / (x.size(0) * channels);
  const int64_t adjacent = last ? to.position_step : positions * item;
  const bool stream = should_stream(2 * x.numel() * item, target.const_data_ptr(), adjacent | to.batch_step);
  const RowKernels& table = kernels();
  const Request request = {table,
                           dtype,
                           activation == "silu" ? Activation::silu : Activation::none,
                           x.size(0),
                           channels,
                           positions,
                           num_groups,
                           eps,
                           static_cast<const char*>(source.const_data_ptr()),
                           static_cast<char*>(target.mutable_data_ptr()),
                           from,
                           to,
                           as_floats(table, weight_param, channels),
                           as_floats(table, bias_param, channels),
                           stream};
  if (last) {
    channels_last(request);
  } else if (request.batch * num_groups < 2 * static_cast<int64_t>(torch::stable::get_num_threads())) {
    channels_first_by_piece(request);
  } else {
    channels_first_by_group(request);
  }
  if (!direct) {
    torch::stable::copy_(out, target);
  }
  return out;
}

Tensor group_norm(const Tensor& x, int64_t num_groups, OptionalTensor weight, OptionalTensor bias, double eps,
                  std::string activation) {
  return group_norm_into(x, num_groups, weight, bias, eps, activation, {});
}

}  // namespace
}  // namespace sgl_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(sgl_kernels_cpu, m) {
  m.def("group_norm(Tensor x, int num_groups, Tensor? weight, Tensor? bias, float eps, str activation) -> Tensor");
  // The same into given tensors; null asks for a fresh one.
  m.def(
      "group_norm_out(Tensor x, int num_groups, Tensor? weight, Tensor? bias, float eps, str activation, "
      "Tensor(a!)? out) -> Tensor(a!)");
}

STABLE_TORCH_LIBRARY_IMPL(sgl_kernels_cpu, CPU, m) {
  m.impl("group_norm", TORCH_BOX(&sgl_kernels::group_norm));
  m.impl("group_norm_out", TORCH_BOX(&sgl_kernels::group_norm_into));
}
