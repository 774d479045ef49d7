// torch.ops.sgl_kernels_cpu.peak_gflops: the arithmetic ceiling of one core, for the benchmarks.
#include "peak/peak.h"

#include <torch/csrc/stable/library.h>

#include <cstdint>

#include "isa.h"

namespace sgl_kernels {
namespace {

// kind 0 is float32, 1 is bfloat16 dot products, 2 is 8-bit integer dot products; 0.0 where the core has no such
// instruction, or SGL_KERNELS_CPU_ISA holds the kernels below it.
double peak_gflops(int64_t kind) {
#if defined(__x86_64__) && !defined(SGL_KERNELS_EMULATED)
  const Isa level = isa_level();
  if (kind == 0) {
    return level >= Isa::avx512 ? peak_float32_avx512() : level >= Isa::avx2 ? peak_float32_avx2() : 0.0;
  }
  if (kind == 1) {
    return level >= Isa::avx512bf16 ? peak_bfloat16_avx512bf16() : 0.0;
  }
  if (kind == 2) {
    if (has_vnni()) return peak_int8_avx512vnni();
    return level >= Isa::avx2 ? peak_int8_avx2() : 0.0;
  }
#endif
  return 0.0;
}

}  // namespace
}  // namespace sgl_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(sgl_kernels_cpu, m) { m.def("peak_gflops(int kind) -> float"); }

STABLE_TORCH_LIBRARY_IMPL(sgl_kernels_cpu, CompositeExplicitAutograd, m) {
  m.impl("peak_gflops", TORCH_BOX(&sgl_kernels::peak_gflops));
}
