// Chooses the table of kernels for this machine.
#include "isa.h"
#include "rowwise/args.h"

namespace sgl_kernels {

const Kernels& kernels() {
#if defined(__x86_64__)
  switch (isa_level()) {
    case Isa::avx512:
      return avx512::kKernels;
    case Isa::avx512bf16:
    case Isa::amx:
      return avx512bf16::kKernels;
    case Isa::avx2:
      return avx2::kKernels;
    default:
      return baseline::kKernels;
  }
#else
  return baseline::kKernels;  // on aarch64 the baseline is NEON
#endif
}

}  // namespace sgl_kernels
