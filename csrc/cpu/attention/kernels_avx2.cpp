// Attention with AVX2, FMA and F16C.
#include "attention/entry-inl.h"

namespace sgl_kernels::attention {

const AttentionKernels kAvx2 = {kPanel,         blocked_scratch<DotF32>, run_by_type,
                                decode_scratch, decode_by_type,          combine_parts};

}  // namespace sgl_kernels::attention
