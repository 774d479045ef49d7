// Run-time detection of the instruction set, and its op torch.ops.sgl_kernels_cpu.isa_level.
#include "isa.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sgl_kernels {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512bf16", "amx", "neon"};
constexpr int kLevels = 6;

const char* wanted_level() {  // null where none is named
  const char* wanted = std::getenv("SGL_KERNELS_CPU_ISA");
  return wanted == nullptr || *wanted == '\0' ? nullptr : wanted;
}

#if defined(SGL_KERNELS_EMULATED)
Isa hardware_level() { return Isa::amx; }  // functions over AVX2 stand for the rest (tests/kernels/native/emulated)
#elif defined(__x86_64__)
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (~d & (kBf16 | kTile | kInt8)) != 0) return false;
#if defined(__linux__)
  // Linux keeps tiles (8 KB a thread) only for processes that ask: ARCH_REQ_XCOMP_PERM for XTILEDATA.
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}

Isa hardware_level() {
  // __builtin_cpu_supports also asks whether the operating system saves the wide registers.
  __builtin_cpu_init();
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))) {
    return Isa::baseline;
  }
  if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))) {
    return Isa::avx2;
  }
  if (!(__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni"))) return Isa::avx512;
  const char* wanted = wanted_level();
  const bool may_have_tiles = wanted == nullptr || std::string(wanted) == "amx";
  return may_have_tiles && has_amx() ? Isa::amx : Isa::avx512bf16;
}
#elif defined(__aarch64__)
Isa hardware_level() { return Isa::neon; }
#else
Isa hardware_level() { return Isa::baseline; }
#endif

Isa allowed_level() {
  const Isa hardware = hardware_level();
  const char* wanted = wanted_level();
  if (wanted == nullptr) {
    return hardware;
  }
  for (int level = 0; level < kLevels; ++level) {
    if (std::string(wanted) == kNames[level]) {
      return level < static_cast<int>(hardware) ? static_cast<Isa>(level) : hardware;
    }
  }
  STD_TORCH_CHECK(false, "SGL_KERNELS_CPU_ISA is '", wanted,
                  "'; expected one of baseline, avx2, avx512, avx512bf16, amx, neon. Correct it or unset it.");
  return hardware;
}

}  // namespace

bool isa_insisted() { return wanted_level() != nullptr; }

Isa isa_level() {
  static const Isa level = allowed_level();
  return level;
}

const char* isa_name(Isa level) { return kNames[static_cast<int>(level)]; }

namespace {

bool with_avx512() { return isa_level() >= Isa::avx512 && isa_level() != Isa::neon; }

}  // namespace

#if defined(SGL_KERNELS_EMULATED) || !defined(__x86_64__)
bool has_vnni() { return with_avx512(); }
bool has_vbmi() { return with_avx512(); }
#else
bool has_vnni() { return with_avx512() && __builtin_cpu_supports("avx512vnni"); }
bool has_vbmi() { return with_avx512() && __builtin_cpu_supports("avx512vbmi"); }
#endif

namespace {

std::string isa_level_op() { return isa_name(isa_level()); }

}  // namespace
}  // namespace sgl_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(sgl_kernels_cpu, m) { m.def("isa_level() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(sgl_kernels_cpu, CompositeExplicitAutograd, m) {
  m.impl("isa_level", TORCH_BOX(&sgl_kernels::isa_level_op));
}
