// Which instruction set the kernels may use on this machine: asked once, cached.
#pragma once

namespace sgl_kernels {

// Ordered on x86-64: a higher level contains the lower ones. neon is aarch64's only level beside baseline.
enum class Isa { baseline = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3, amx = 4, neon = 5 };

// avx2 means AVX2, FMA and F16C; avx512 means F, BW, DQ and VL; avx512bf16 adds BF16 and VNNI; amx adds AMX with BF16
// and INT8, and the system's leave to use it.
// SGL_KERNELS_CPU_ISA=baseline|avx2|avx512|avx512bf16|amx|neon forces a lower level (never a higher one).
Isa isa_level();

// Whether SGL_KERNELS_CPU_ISA names a level: then its instructions are used even where others are known to be faster.
bool isa_insisted();

const char* isa_name(Isa level);

// Parts of AVX-512 that no level promises: whether the processor has them and the level in use is one of AVX-512.
bool has_vnni();
bool has_vbmi();

}  // namespace sgl_kernels
