// Quantised attention with AVX-512 VNNI: vpdpbusd.
#include "attention/sage/run-inl.h"

namespace sgl_kernels::attention {

const SageKernels kSageVnni = {kPanel, sage_sizes, measure_by_type, quantise_by_type, sage_scratch_bytes, sage_by_type};

}  // namespace sgl_kernels::attention
