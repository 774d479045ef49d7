// Quantised attention for every processor: byte products from 16-bit ones (SSE2), or plain arithmetic.
#include "attention/sage/run-inl.h"

namespace sgl_kernels::attention {

const SageKernels kSageBaseline = {kPanel,           sage_sizes,         measure_by_type,
                                   quantise_by_type, sage_scratch_bytes, sage_by_type};

}  // namespace sgl_kernels::attention
