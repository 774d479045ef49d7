// Which instructions the kernels may use: features of a processor, sets of them, and the levels that name such sets.
// C headers only, and nothing that becomes code: kernel files include it.
#pragma once

#include <stdint.h>

namespace sgl_kernels {

// A set of features. There is no order among sets but that of containing.
struct Features {
  uint32_t bits;
};
constexpr Features operator|(Features a, Features b) { return {a.bits | b.bits}; }
constexpr Features operator&(Features a, Features b) { return {a.bits & b.bits}; }
constexpr bool holds(Features all, Features some) { return (some.bits & ~all.bits) == 0; }

namespace feature {
constexpr Features avx2{1u << 0}, fma{1u << 1}, f16c{1u << 2};
constexpr Features avx512f{1u << 3}, avx512bw{1u << 4}, avx512dq{1u << 5}, avx512vl{1u << 6};
constexpr Features avx512vnni{1u << 7}, avx512vbmi{1u << 8}, avx512bf16{1u << 9};
constexpr Features amx{1u << 10};  // tiles with BF16 and INT8, and the system's leave to use them
constexpr Features neon{1u << 11};
// Not an instruction but a measurement: vdpbf16ps does twice the work of an FMA on AMD's Zen 4 and 5 (535 against 267
// GFLOP/s), but half of it on Intel's Sapphire and Emerald Rapids (88 against 177). Naming a level grants it anyway.
constexpr Features fast_bf16{1u << 12};
}  // namespace feature

// What a file kernels_<level>.cpp is compiled for: setup.py gives it the flags of the same name.
namespace level {
constexpr Features baseline{0};  // SSE2 on x86-64, NEON on aarch64
constexpr Features avx2 = feature::avx2 | feature::fma | feature::f16c;
constexpr Features avx512 = avx2 | feature::avx512f | feature::avx512bw | feature::avx512dq | feature::avx512vl;
constexpr Features avx512vnni = avx512 | feature::avx512vnni;
constexpr Features avx512vbmi = avx512vnni | feature::avx512vbmi;
constexpr Features avx512bf16 = avx512vnni | feature::avx512bf16;
constexpr Features amx = avx512bf16 | feature::amx;
constexpr Features neon = feature::neon;
}  // namespace level

// The set in force: what the processor has, and of that what the level which the settings name allows.
Features features_in_force();

// Whether the settings name a level: then its instructions are used even where others are known to be faster.
bool isa_insisted();

// The name of the largest level that the set in force contains.
const char* isa_name();

}  // namespace sgl_kernels
