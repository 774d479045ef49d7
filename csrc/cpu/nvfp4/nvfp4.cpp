// torch.ops.sgl_kernels_cpu.nvfp4_*: validation, memory and threads around the NVFP4 vector code.
#include "nvfp4/args.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "choose.h"

namespace sgl_kernels {
namespace {

using nvfp4::Coding;
using nvfp4::Element;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr float kMinGlobal = 0x1p-117f;

constinit Choice<nvfp4::Nvfp4Kernels> choice({
#if defined(__x86_64__)
    {level::avx512vbmi, nvfp4::avx512vbmi::kKernels},
    {level::avx2, nvfp4::avx2::kKernels},
#endif
    {level::baseline, nvfp4::baseline::kKernels},
});

// "avx512vbmi", "avx2" or "baseline" (NEON on aarch64): what serves here.
std::string level_name() { return choice.table().name; }

Element element(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Element::f32;
    case ScalarType::BFloat16:
      return Element::bf16;
    case ScalarType::Half:
      return Element::f16;
    default:
      break;
  }
  STD_TORCH_CHECK(false, "nvfp4: ", name, " has an unsupported dtype; expected float32, bfloat16 or float16");
  return Element::f32;
}

int64_t element_size(Element e) { return e == Element::f32 ? 4 : 2; }

void check_matrix(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 2 && x.is_contiguous(), "nvfp4: ", name,
                  " must be a contiguous matrix on the CPU");
}

float scalar(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_cpu() && t.numel() == 1 && t.scalar_type() == ScalarType::Float, "nvfp4: ", name,
                  " must be one float32 on the CPU");
  return *t.const_data_ptr<float>();
}

// amax / 2688 over the finite values, as reference.py's global_scale_of.
float global_scale_of(const nvfp4::Nvfp4Kernels& kernels, const Tensor& x, Element type) {
  const int64_t n = x.numel(), step = 1 << 18;
  const auto* base = static_cast<const uint8_t*>(x.const_data_ptr());
  std::vector<float> parts(static_cast<size_t>((n + step - 1) / step), 0.0f);
  torch::stable::parallel_for(0, static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t count = std::min(step, n - i * step);
      parts[static_cast<size_t>(i)] = kernels.finite_amax(base + i * step * element_size(type), type, count);
    }
  });
  float amax = 0.0f;
  for (const float p : parts) {
    amax = std::max(amax, p);
  }
  return amax > 0.0f ? std::max(amax / 2688.0f, kMinGlobal) : 1.0f;
}

Tensor one_float(const Tensor& like, float value) {
  Tensor out = torch::stable::empty({1}, ScalarType::Float, std::nullopt, like.device());
  *out.mutable_data_ptr<float>() = value;
  return out;
}

std::tuple<Tensor, Tensor, Tensor> quantize(Tensor x, std::optional<Tensor> global_scale) {
  const nvfp4::Nvfp4Kernels& kernels = choice.table();
  check_matrix(x, "x");
  const Element type = element(x, "x");
  const int64_t rows = x.size(0), k = x.size(1);
  STD_TORCH_CHECK(k % nvfp4::kBlock == 0, "nvfp4: x has ", k, " columns; expected a multiple of 16");
  const float scale = global_scale ? scalar(*global_scale, "global_scale") : global_scale_of(kernels, x, type);
  Tensor codes = torch::stable::empty({rows, k / 2}, ScalarType::Byte, std::nullopt, x.device());
  Tensor scales = torch::stable::empty({rows, k / nvfp4::kBlock}, ScalarType::Byte, std::nullopt, x.device());
  const nvfp4::Rows from{x.const_data_ptr(), type, k};
  auto* c = codes.mutable_data_ptr<uint8_t>();
  auto* s = scales.mutable_data_ptr<uint8_t>();
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(k, 1));
  torch::stable::parallel_for(
      0, rows, grain, [&](int64_t begin, int64_t end) { kernels.quantize_rows(from, scale, begin, end, c, s); });
  return {codes, scales, one_float(x, scale)};
}

void check_packed(const Tensor& weight, int64_t k, int64_t n) {
  STD_TORCH_CHECK(weight.is_cpu() && weight.dim() == 3 && weight.is_contiguous() &&
                      weight.scalar_type() == ScalarType::Byte && weight.size(2) == nvfp4::kBlockBytes,
                  "nvfp4: weight must be packed: contiguous uint8 of shape (N/64, K/16, 576)");
  STD_TORCH_CHECK(weight.size(1) * nvfp4::kBlock == k, "nvfp4: weight holds K = ", weight.size(1) * nvfp4::kBlock,
                  " but x has ", k, " columns");
  STD_TORCH_CHECK(n > 0 && (n + nvfp4::kPanel - 1) / nvfp4::kPanel == weight.size(0), "nvfp4: out_features is ", n,
                  " but weight has ", weight.size(0), " panels of 64");
}

Coding coding_of(const std::string& activation, Element type) {
  if (activation == "int8") {
    return Coding::int8;
  }
  if (activation == "nvfp4") {
    return Coding::nvfp4;
  }
  STD_TORCH_CHECK(activation == "bf16", "nvfp4: activation is '", activation, "'; expected bf16, int8 or nvfp4");
  return type == Element::f32 ? Coding::wide32 : Coding::wide16;
}

Tensor linear(Tensor x, Tensor weight, Tensor global_scale, std::optional<Tensor> bias, std::string activation,
              std::optional<Tensor> input_scale, int64_t n) {
  const nvfp4::Nvfp4Kernels& kernels = choice.table();
  check_matrix(x, "x");
  const Element type = element(x, "x");
  const int64_t rows = x.size(0), k = x.size(1);
  check_packed(weight, k, n);
  nvfp4::Linear layer{
      weight.const_data_ptr<uint8_t>(), scalar(global_scale, "global_scale"), nullptr, Element::f32, n, k,
      coding_of(activation, type)};
  if (bias) {
    STD_TORCH_CHECK(bias->is_cpu() && bias->numel() == n && bias->is_contiguous(),
                    "nvfp4: bias must be contiguous with ", n, " elements on the CPU");
    layer.bias = bias->const_data_ptr();
    layer.bias_type = element(*bias, "bias");
  }
  Tensor out = torch::stable::empty({rows, n}, x.scalar_type(), std::nullopt, x.device());
  float scale = 1.0f;
  if (layer.coding == Coding::nvfp4) {
    scale = input_scale ? scalar(*input_scale, "input_scale") : global_scale_of(kernels, x, type);
  }

  const int64_t digits = nvfp4::digits(layer.coding), chunk = kernels.rows_at_once(rows, layer.coding);
  const int64_t most = std::min(rows, chunk), tiles = (most * digits + nvfp4::kTileRows - 1) / nvfp4::kTileRows;
  const int64_t tile_bytes =
      k / nvfp4::kBlock * nvfp4::tile_block_bytes(nvfp4::kTileRows, nvfp4::has_block_scale(layer.coding));
  const int64_t room = std::max(tiles * tile_bytes, most * k * 4);  // rows may stay fp32
  Tensor encoded = torch::stable::empty({room + 64}, ScalarType::Byte, std::nullopt, x.device());
  auto* a = encoded.mutable_data_ptr<uint8_t>();
  std::vector<float> row_scale(static_cast<size_t>(most));
  const int64_t panels = weight.size(0), size = element_size(type);
  for (int64_t first = 0; first < rows; first += chunk) {
    const int64_t now = std::min(chunk, rows - first);
    const nvfp4::Rows part{static_cast<const uint8_t*>(x.const_data_ptr()) + first * k * size, type, k};
    auto* to = static_cast<uint8_t*>(out.mutable_data_ptr()) + first * n * size;
    const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(k, 1));
    torch::stable::parallel_for(0, now, grain, [&](int64_t begin, int64_t end) {
      kernels.encode(part, layer.coding, scale, begin, end, now, a, row_scale.data());
    });
    torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
      const int64_t bytes = kernels.panel_scratch_bytes(now, layer.coding);
      uint8_t* scratch = static_cast<uint8_t*>(::operator new[](static_cast<size_t>(bytes), std::align_val_t{64}));
      kernels.multiply(layer, a, row_scale.data(), now, to, type, begin, end, scratch);
      ::operator delete[](scratch, std::align_val_t{64});
    });
  }
  return out;
}

// Rows [64 * begin, min(n, 64 * end)) of a packed weight, transposed to (k, rows), without its global scale.
Tensor decode(Tensor weight, int64_t k, int64_t n, int64_t begin, int64_t end, Tensor like) {
  const nvfp4::Nvfp4Kernels& kernels = choice.table();
  check_packed(weight, k, n);
  STD_TORCH_CHECK(0 <= begin && begin < end && end <= weight.size(0), "nvfp4: panels ", begin, " to ", end, " of ",
                  weight.size(0));
  const Element type = element(like, "like");
  const int64_t columns = std::min(n, end * nvfp4::kPanel) - begin * nvfp4::kPanel;
  Tensor out = torch::stable::empty({k, columns}, like.scalar_type(), std::nullopt, like.device());
  auto* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  const auto* from = weight.const_data_ptr<uint8_t>();
  torch::stable::parallel_for(begin, end, 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      const int64_t at = (p - begin) * nvfp4::kPanel;
      kernels.decode_panel(from + p * (k / nvfp4::kBlock) * nvfp4::kBlockBytes, k, type, to + at * element_size(type),
                           columns, std::min(nvfp4::kPanel, columns - at));
    }
  });
  return out;
}

}  // namespace
}  // namespace sgl_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(sgl_kernels_cpu, m) {
  m.def("nvfp4_level() -> str");
  m.def("nvfp4_quantize(Tensor x, Tensor? global_scale) -> (Tensor, Tensor, Tensor)");
  m.def(
      "nvfp4_linear(Tensor x, Tensor weight, Tensor global_scale, Tensor? bias, str activation, "
      "Tensor? input_scale, int n) -> Tensor");
  m.def("nvfp4_decode(Tensor weight, int k, int n, int begin, int end, Tensor like) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sgl_kernels_cpu, CompositeExplicitAutograd, m) {
  m.impl("nvfp4_level", TORCH_BOX(&sgl_kernels::level_name));
}

STABLE_TORCH_LIBRARY_IMPL(sgl_kernels_cpu, CPU, m) {
  m.impl("nvfp4_quantize", TORCH_BOX(&sgl_kernels::quantize));
  m.impl("nvfp4_linear", TORCH_BOX(&sgl_kernels::linear));
  m.impl("nvfp4_decode", TORCH_BOX(&sgl_kernels::decode));
}
