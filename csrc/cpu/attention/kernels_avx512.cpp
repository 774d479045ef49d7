// Attention with AVX-512 (F, BW, DQ, VL); 16-bit inputs are widened while they are packed.
#include "attention/entry-inl.h"

namespace sgl_kernels::attention {

const AttentionKernels kAvx512 = {kPanel,         blocked_scratch<DotF32>, run_by_type,
                                  decode_scratch, decode_by_type,          combine_parts};

}  // namespace sgl_kernels::attention
