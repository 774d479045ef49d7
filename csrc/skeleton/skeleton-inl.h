// The kernel, compiled once for each instruction set: a file kernels_<level>.cpp includes it and nothing else, and its
// name's end tells setup.py the compiler's flags. No header with inline functions of the standard library in here: the
// linker keeps one copy of those, and it might be the one with instructions that the processor lacks.
#pragma once

#include "rowwise/common-inl.h"
#include "skeleton/args.h"

namespace sgl_kernels::skeleton {
namespace SGL_ISA {
namespace {

using namespace ::sgl_kernels::SGL_ISA;

// A block is two vectors of fp32, whatever the storage type. The end of a row that fills no block is read into one and
// written from one, so the arithmetic is spelled once.
template <class T>
SGL_INLINE void scale_row(const T* x, T* out, int64_t dim, float factor) {
  const F by = splat(factor);
  for (int64_t i = 0; i < dim; i += kBlock) {
    const int64_t count = smaller(kBlock, dim - i);
    const Pair v = load_block(x + i, count);
    store_block(out + i, {v.a * by, v.b * by}, count, false);
  }
}

void scale(const ScaleArgs& args) {
  by_dtype(args.dtype, [&](auto* type) {
    using T = SGL_TYPE_OF(type);
    for (int64_t r = 0; r < args.rows; ++r) {
      scale_row(row<T>(args.x, args.x_step, r), row<T>(args.out, args.out_step, r), args.dim, args.factor);
    }
  });
}

}  // namespace

const SkeletonKernels kKernels = {.scale = scale};

}  // namespace SGL_ISA
}  // namespace sgl_kernels::skeleton
