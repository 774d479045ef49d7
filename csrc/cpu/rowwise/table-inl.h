// Every kernel of one instruction set, as the table of rowwise/args.h. For rowwise/kernels_*.cpp alone.
#pragma once

#include "rowwise/group_norm-inl.h"
#include "rowwise/rope-inl.h"

namespace sgl_kernels {
namespace SGL_ISA {

extern const RowKernels kKernels;
const RowKernels kKernels = {
    .affine = prepare_affine,
    .plain = prepare_plain,
    .norm = norm,
    .residual_norm = residual_norm,
    .modulate = modulate,
    .activate = activate,
    .rope = rope,
    .rope_gain = rope_gain,
    .moments = moments,
    .channel = channel,
    .last_moments = last_moments,
    .last_apply = last_apply,
};

}  // namespace SGL_ISA
}  // namespace sgl_kernels
