// torch.ops.sgl_kernels_cpu.peak_gflops: the arithmetic ceiling of one core, for the benchmarks.
#include "peak/peak.h"

#include <torch/csrc/stable/library.h>

#include <cstdint>

#include "choose.h"

namespace sgl_kernels {
namespace {

#if defined(__x86_64__) && !defined(SGL_KERNELS_EMULATED)
constexpr Peak kFloat32Avx2{peak_float32_avx2}, kFloat32Avx512{peak_float32_avx512};
constexpr Peak kBfloat16{peak_bfloat16_avx512bf16};
constexpr Peak kInt8Avx2{peak_int8_avx2}, kInt8Vnni{peak_int8_avx512vnni};
constinit Choice<Peak> float32({{level::avx512, kFloat32Avx512}, {level::avx2, kFloat32Avx2}});
constinit Choice<Peak> bfloat16({{level::avx512bf16, kBfloat16}});
constinit Choice<Peak> int8({{level::avx512vnni, kInt8Vnni}, {level::avx2, kInt8Avx2}});

const Peak* peak(int64_t kind) {
  return kind == 0 ? float32.find() : kind == 1 ? bfloat16.find() : kind == 2 ? int8.find() : nullptr;
}
#else
const Peak* peak(int64_t) { return nullptr; }
#endif

// kind 0 is float32, 1 is bfloat16 dot products, 2 is 8-bit integer dot products; 0.0 where the level in force has no
// such instruction.
double peak_gflops(int64_t kind) {
  const Peak* found = peak(kind);
  return found == nullptr ? 0.0 : found->rate();
}

}  // namespace
}  // namespace sgl_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(sgl_kernels_cpu, m) { m.def("peak_gflops(int kind) -> float"); }

STABLE_TORCH_LIBRARY_IMPL(sgl_kernels_cpu, CompositeExplicitAutograd, m) {
  m.impl("peak_gflops", TORCH_BOX(&sgl_kernels::peak_gflops));
}
