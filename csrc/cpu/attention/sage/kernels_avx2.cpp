// Quantised attention with AVX2: byte products from 16-bit ones.
#include "attention/sage/run-inl.h"

namespace sgl_kernels::attention {

const SageKernels kSageAvx2 = {kPanel, sage_sizes, measure_by_type, quantise_by_type, sage_scratch_bytes, sage_by_type};

}  // namespace sgl_kernels::attention
