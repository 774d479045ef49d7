// NVFP4 linear layers for the baseline of the architecture (SSE2, or NEON on aarch64).
#include "nvfp4/product-inl.h"

namespace sgl_kernels::nvfp4::baseline {

float finite_amax(const void* x, Element type, int64_t n);

const Nvfp4Kernels kKernels = {
    .name = "baseline",
    .encode = encode,
    .multiply = multiply,
    .panel_scratch_bytes = panel_scratch_bytes,
    .rows_at_once = rows_at_once,
    .quantize_rows = quantize_rows,
    .finite_amax = finite_amax,
    .decode_panel = decode_panel,
};

}  // namespace sgl_kernels::nvfp4::baseline
