// activation(x W^T + bias): checks, and the cut into tasks.
#include "linear/args.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "choose.h"
#include "common/parallel.h"
#include "common/rows.h"

namespace sgl_kernels {
namespace {

constexpr int64_t kPackedBytes = 256 * 1024;  // of a packed slice: half of a common L2
constexpr int64_t kDepthSlice = 512;          // cut deeper products: a panel of 16 columns then is 64 KiB
constexpr int64_t kTaskRows = 2040;           // repacking the slice then costs about 1 % of the product
constexpr int64_t kMostColumns = 192, kLeastColumns = 32;

constexpr int64_t up_to(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
constexpr int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

Activation activation_of(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "silu") return Activation::silu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  STD_TORCH_CHECK(name == "gelu", "linear: activation is '", name, "', expected none, silu, gelu or gelu_tanh");
  return Activation::gelu_erf;
}

#if defined(__x86_64__)
constinit Choice<LinearKernels> choice({
    {level::avx512, avx512::kLinear},
    {level::avx2, avx2::kLinear},
});
#endif

const LinearKernels* kernels() {  // null where there are none
#if defined(__x86_64__)
  return choice.find();
#else
  return nullptr;
#endif
}

std::string unsupported_reason() {
  if (kernels() != nullptr) return "";
  return std::string("linear needs AVX2, the instruction set in force is ") + isa_name();
}

Tensor linear(const Tensor& x, const Tensor& weight, OptionalTensor bias, std::string activation) {
  const char* op = "linear";
  const LinearKernels* k = kernels();
  STD_TORCH_CHECK(k != nullptr, unsupported_reason());
  check_columns(op, "x", x);
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == x.size(-1), op, ": weight has ", weight.dim(),
                  " dimensions, expected (out, ", x.size(-1), ")");
  check_same_dtype(op, "weight", weight, "x", x);
  LinearArgs whole = {};
  whole.dtype = row_dtype(op, "x", x);
  whole.activation = activation_of(activation);
  whole.depth = x.size(-1);
  whole.columns = weight.size(0);
  const int64_t item = item_bytes(whole.dtype);
  const LinearTile tile = k->tile;

  const Tensor rows = torch::stable::contiguous(x);
  const Tensor matrix = with_adjacent_columns(weight);
  OptionalTensor added;
  if (bias.has_value()) {
    check_same_dtype(op, "bias", *bias, "x", x);
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == whole.columns, op, ": bias must have shape [", whole.columns,
                    "]");
    added = torch::stable::contiguous(*bias);
    whole.bias = static_cast<const char*>(added->const_data_ptr());
  }
  std::vector<int64_t> sizes = sizes_of(x);
  sizes.back() = whole.columns;
  Tensor out = empty_contiguous(x, sizes);
  whole.rows = whole.columns == 0 ? 0 : out.numel() / whole.columns;
  if (whole.rows == 0) {
    return out;
  }
  whole.x = static_cast<const char*>(rows.const_data_ptr());
  whole.x_step = whole.depth * item;
  whole.weight = static_cast<const char*>(matrix.const_data_ptr());
  whole.weight_step = matrix.size(0) > 1 ? matrix.stride(0) * item : 0;
  whole.out = static_cast<char*>(out.mutable_data_ptr());
  whole.out_step = whole.columns * item;

  // What an element of the result is does not depend on the cut, so neither does it on the number of threads.
  const int64_t depth_parts = whole.depth > kDepthSlice + kDepthSlice / 2 ? parts(whole.depth, kDepthSlice) : 1;
  whole.depth_slice = up_to(parts(whole.depth, depth_parts), tile.columns);
  const int64_t fit = kPackedBytes / 4 / whole.depth_slice / tile.columns * tile.columns;
  const int64_t most = std::clamp(fit, kLeastColumns, kMostColumns);
  const int64_t row_parts = parts(whole.rows, kTaskRows), threads = torch::stable::get_num_threads();
  int64_t column_parts = parts(whole.columns, most);
  while (column_parts * row_parts < 4 * threads && column_parts * row_parts % threads != 0 &&
         whole.columns / (column_parts + 1) >= kLeastColumns) {
    ++column_parts;
  }
  const int64_t task_rows = up_to(parts(whole.rows, row_parts), tile.rows);
  const int64_t task_columns = up_to(parts(whole.columns, column_parts), tile.columns);
  const int64_t across = parts(whole.columns, task_columns), down = parts(whole.rows, task_rows);

  const auto work = [&](int64_t begin, int64_t end) {
    LinearArgs most_of = whole;
    most_of.rows = std::min(task_rows, whole.rows);
    most_of.columns = std::min(task_columns, whole.columns);
    Scratch memory(linear_scratch_bytes(most_of, tile));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / across * task_rows, column = task % across * task_columns;
      LinearArgs args = whole;
      args.rows = std::min(task_rows, whole.rows - row);
      args.columns = std::min(task_columns, whole.columns - column);
      args.x += row * whole.x_step;
      args.weight += column * whole.weight_step;
      args.bias = whole.bias == nullptr ? nullptr : whole.bias + column * item;
      args.out += row * whole.out_step + column * item;
      k->linear(args, memory.floats());
    }
  };
  const int64_t tasks = across * down;
  if (tasks == 1 || whole.rows * whole.columns * whole.depth < kGrainElements * 8) {
    work(0, tasks);
  } else {
    torch::stable::parallel_for(0, tasks, 1, work);
  }
  return out;
}

}  // namespace

int64_t linear_scratch_bytes(const LinearArgs& args, const LinearTile& tile) {
  const int64_t columns = up_to(args.columns, tile.columns);
  const bool cut = args.depth > args.depth_slice;
  return 4 * (columns * args.depth_slice + tile.rows * (args.depth_slice + kRowGap) +
              (cut ? up_to(args.rows, tile.rows) * columns : tile.rows * tile.columns));
}

}  // namespace sgl_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(sgl_kernels_cpu, m) {
  m.def("linear(Tensor x, Tensor weight, Tensor? bias, str activation) -> Tensor");
  m.def("linear_unsupported_reason() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(sgl_kernels_cpu, CPU, m) { m.impl("linear", TORCH_BOX(&sgl_kernels::linear)); }

STABLE_TORCH_LIBRARY_IMPL(sgl_kernels_cpu, CompositeExplicitAutograd, m) {
  m.impl("linear_unsupported_reason", TORCH_BOX(&sgl_kernels::unsupported_reason));
}
