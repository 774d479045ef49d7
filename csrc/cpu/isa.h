// Which instruction set the kernels may use on this machine: asked once, cached.
#pragma once

namespace sgl_kernels {

// Ordered on x86-64: a higher level contains the lower ones. neon is aarch64's only level beside baseline.
enum class Isa { baseline = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3, neon = 4 };

// avx2 means AVX2, FMA and F16C; avx512 means F, BW, DQ and VL; avx512bf16 adds BF16 and VNNI.
// SGL_KERNELS_CPU_ISA=baseline|avx2|avx512|avx512bf16|neon forces a lower level (never a higher one).
Isa isa_level();

const char* isa_name(Isa level);

}  // namespace sgl_kernels
