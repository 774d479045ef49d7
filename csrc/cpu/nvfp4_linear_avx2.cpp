// NVFP4 linear layers for AVX2.
#include "nvfp4_product.h"

namespace sgl_kernels::nvfp4::avx2 {

float finite_amax(const void* x, Element type, int64_t n);

const Kernels kKernels = {encode, multiply, panel_scratch_bytes, quantize_rows, finite_amax, decode_panel};

}  // namespace sgl_kernels::nvfp4::avx2
