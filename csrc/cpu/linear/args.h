// activation(x W^T + bias) in fp32 on any storage type: what crosses to the vector code (kernels_*.cpp).
#pragma once

#include "rowwise/args.h"

namespace sgl_kernels {

// A tile of sums in registers: two vectors of columns, to which a slice of the weight is padded, and as many rows as
// leave registers for the operands.
struct LinearTile {
  int64_t columns, rows;
};
constexpr int64_t kRowGap = 16;  // floats between the rows of a slab beyond its depth
constexpr LinearTile kLinearAvx2 = {16, 6}, kLinearAvx512 = {32, 12};

// One task: rows [0, rows) of x and out, and a slice of the weight's rows, which are the columns of out.
// Strides between rows are in bytes; elements of a row are adjacent.
struct LinearArgs {
  Dtype dtype;
  Activation activation;
  const char* x;
  int64_t x_step;
  const char* weight;
  int64_t weight_step;
  const char* bias;  // null for none
  char* out;
  int64_t out_step;
  int64_t rows, columns, depth;
  int64_t depth_slice;  // elements of depth that are packed at a time
};

// Bytes of scratch for a task: the packed slice, a slab of rows in fp32, and sums where depth is cut.
int64_t linear_scratch_bytes(const LinearArgs& args, const LinearTile& tile);

struct LinearKernels {
  LinearTile tile;
  void (*linear)(const LinearArgs& args, float* scratch);
};
namespace avx2 {
extern const LinearKernels kLinear;
}
namespace avx512 {
extern const LinearKernels kLinear;
}

}  // namespace sgl_kernels
