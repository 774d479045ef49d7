// Run-time detection of the instruction set, and its op torch.ops.sgl_kernels_cpu.isa_level.
#include "isa.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <string>

namespace sgl_kernels {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512bf16", "neon"};

Isa hardware_level() {
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks whether the operating system saves the wide registers.
  __builtin_cpu_init();
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))) {
    return Isa::baseline;
  }
  if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))) {
    return Isa::avx2;
  }
  const bool has_bf16 = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  return has_bf16 ? Isa::avx512bf16 : Isa::avx512;
#elif defined(__aarch64__)
  return Isa::neon;
#else
  return Isa::baseline;
#endif
}

Isa allowed_level() {
  const Isa hardware = hardware_level();
  const char* wanted = std::getenv("SGL_KERNELS_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    return hardware;
  }
  for (int level = 0; level < 5; ++level) {
    if (std::string(wanted) == kNames[level]) {
      return level < static_cast<int>(hardware) ? static_cast<Isa>(level) : hardware;
    }
  }
  STD_TORCH_CHECK(false, "SGL_KERNELS_CPU_ISA is '", wanted,
                  "'; expected one of baseline, avx2, avx512, avx512bf16, neon. Correct it or unset it.");
  return hardware;
}

}  // namespace

Isa isa_level() {
  static const Isa level = allowed_level();
  return level;
}

const char* isa_name(Isa level) { return kNames[static_cast<int>(level)]; }

namespace {

std::string isa_level_op() { return isa_name(isa_level()); }

}  // namespace
}  // namespace sgl_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(sgl_kernels_cpu, m) { m.def("isa_level() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(sgl_kernels_cpu, CompositeExplicitAutograd, m) {
  m.impl("isa_level", TORCH_BOX(&sgl_kernels::isa_level_op));
}
