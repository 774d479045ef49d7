// Attention for every processor: SSE2 on x86-64, NEON on aarch64.
#include "attention/entry-inl.h"

namespace sgl_kernels::attention {

const AttentionKernels kBaseline = {kPanel,         blocked_scratch<DotF32>, run_by_type,
                                    decode_scratch, decode_by_type,          combine_parts};

}  // namespace sgl_kernels::attention
