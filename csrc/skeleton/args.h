// The border of the family `skeleton`: plain data, C headers only. Both sides of it include this file and nothing else
// of each other: the op (skeleton.cpp) knows torch and threads, the kernel (skeleton-inl.h) knows pointers and strides.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace sgl_kernels::skeleton {

// out = x * factor. Strides between rows are in bytes and free; inside a row elements are adjacent.
struct ScaleArgs {
  Dtype dtype;
  const char* x;
  int64_t x_step;
  char* out;
  int64_t out_step;
  int64_t rows, dim;
  float factor;
};

// One table for each instruction set. Each lives in a namespace of its own, so that no function of one level can stand
// for the same function of another when the library is linked.
struct SkeletonKernels {
  void (*scale)(const ScaleArgs&);
};
namespace baseline {
extern const SkeletonKernels kKernels;
}
namespace avx2 {
extern const SkeletonKernels kKernels;
}

}  // namespace sgl_kernels::skeleton
