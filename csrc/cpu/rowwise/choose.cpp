// The tables of the row kernels, the best first.
#include "choose.h"
#include "rowwise/args.h"

namespace sgl_kernels {
namespace {

constinit Choice<RowKernels> choice({
#if defined(__x86_64__)
    {level::avx512bf16, avx512bf16::kKernels},
    {level::avx512, avx512::kKernels},
    {level::avx2, avx2::kKernels},
#endif
    {level::baseline, baseline::kKernels},
});

}  // namespace

const RowKernels& kernels() { return choice.table(); }

}  // namespace sgl_kernels
