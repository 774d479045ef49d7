// What the processor has, what the settings allow of it, and the ops torch.ops.sgl_kernels_cpu.isa_level and set_isa.
#include "isa.h"

#include <torch/csrc/stable/library.h>

#include <atomic>
#include <mutex>
#include <string>

#include "choose.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sgl_kernels {

// The levels that settings may name. `allows`: parts of AVX-512 that a level does not promise, and uses where they are.
struct Named {
  const char* name;
  Features promises, allows;
};

constexpr Named kLevels[] = {
    {"amx", level::amx, level::amx | level::avx512vbmi | feature::fast_bf16},
    {"avx512bf16", level::avx512bf16, level::avx512bf16 | level::avx512vbmi | feature::fast_bf16},
    {"avx512", level::avx512, level::avx512vbmi},
    {"avx2", level::avx2, level::avx2},
    {"neon", level::neon, level::neon},
    {"baseline", level::baseline, level::baseline},
};

namespace {

constexpr Features kEverything{~0u};

#if defined(SGL_KERNELS_EMULATED)
// Functions over AVX2 stand for the instructions (tests/kernels/native/emulated).
Features present(Features) { return level::amx | level::avx512vbmi; }
bool bf16_is_fast() { return !__builtin_cpu_is("intel"); }
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

// What the processor has. Tiles are asked for only where `allowed` has them.
Features present(Features allowed) {
  Features found{0};
  const auto add = [&](bool there, Features which) {
    if (there) found = found | which;
  };
  // __builtin_cpu_supports also asks whether the operating system saves the wide registers.
  __builtin_cpu_init();
  add(__builtin_cpu_supports("avx2"), feature::avx2);
  add(__builtin_cpu_supports("fma"), feature::fma);
  add(__builtin_cpu_supports("f16c"), feature::f16c);
  add(__builtin_cpu_supports("avx512f"), feature::avx512f);
  add(__builtin_cpu_supports("avx512bw"), feature::avx512bw);
  add(__builtin_cpu_supports("avx512dq"), feature::avx512dq);
  add(__builtin_cpu_supports("avx512vl"), feature::avx512vl);
  add(__builtin_cpu_supports("avx512vnni"), feature::avx512vnni);
  add(__builtin_cpu_supports("avx512vbmi"), feature::avx512vbmi);
  add(__builtin_cpu_supports("avx512bf16"), feature::avx512bf16);
  if (holds(allowed, feature::amx) && holds(found, level::avx512bf16)) {
    static const bool tiles = has_amx();
    add(tiles, feature::amx);
  }
  return found;
}
bool bf16_is_fast() { return !__builtin_cpu_is("intel"); }
#elif defined(__aarch64__)
Features present(Features) { return level::neon; }
bool bf16_is_fast() { return false; }
#else
Features present(Features) { return level::baseline; }
bool bf16_is_fast() { return false; }
#endif

}  // namespace

// The level in force, and who chose a table by it.
struct Force {
  std::mutex mutex;
  bool known = false;
  std::atomic<bool> insisted{false};
  Features allowed = kEverything, features{0};
  AnyChoice* choices = nullptr;

  Features now() {  // with the mutex held
    if (!known) {
      features = present(allowed) & allowed;
      if (insisted || bf16_is_fast()) features = features | (feature::fast_bf16 & allowed);
      known = true;
    }
    return features;
  }

  const void* choose(AnyChoice& choice) {
    const std::lock_guard<std::mutex> held(mutex);
    const Features in_force = now();
    for (size_t i = 0; i < choice.count_; ++i) {
      if (!holds(in_force, choice.entries_[i].needs)) continue;
      if (choice.found_.load(std::memory_order_relaxed) == nullptr) {
        choice.next_ = choices;
        choices = &choice;
      }
      choice.found_.store(choice.entries_[i].table, std::memory_order_release);
      return choice.entries_[i].table;
    }
    return nullptr;
  }

  void set(Features wanted, bool insists) {
    const std::lock_guard<std::mutex> held(mutex);
    allowed = wanted;
    insisted = insists;
    known = false;
    while (choices != nullptr) {
      choices->found_.store(nullptr, std::memory_order_release);
      choices = choices->next_;
    }
  }
};

namespace {

constinit Force force;

}  // namespace

const void* AnyChoice::choose() { return force.choose(*this); }

Features features_in_force() {
  const std::lock_guard<std::mutex> held(force.mutex);
  return force.now();
}

bool isa_insisted() { return force.insisted.load(std::memory_order_relaxed); }

const char* isa_name() {
  const Features in_force = features_in_force();
  for (const Named& level : kLevels) {
    if (holds(in_force, level.promises)) return level.name;
  }
  return "baseline";
}

namespace {

std::string isa_level() { return isa_name(); }

// Holds the kernels down to a level, never up; "" takes that back. Answers with the level that is then in force.
std::string set_isa(std::string name) {
  if (name.empty()) {
    force.set(kEverything, false);
    return isa_name();
  }
  std::string names;
  for (const Named& level : kLevels) {
    if (name == level.name) {
      force.set(level.allows, true);
      return isa_name();
    }
    names = std::string(level.name) + (names.empty() ? "" : ", ") + names;
  }
  STD_TORCH_CHECK(false, "set_isa: the level is '", name, "'; expected one of ", names);
  return "";
}

}  // namespace
}  // namespace sgl_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(sgl_kernels_cpu, m) {
  m.def("isa_level() -> str");
  m.def("set_isa(str name) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(sgl_kernels_cpu, CompositeExplicitAutograd, m) {
  m.impl("isa_level", TORCH_BOX(&sgl_kernels::isa_level));
  m.impl("set_isa", TORCH_BOX(&sgl_kernels::set_isa));
}
