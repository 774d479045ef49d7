// What every family of kernels speaks of: dtypes, activations, the size of a block, a row of parameters.
#pragma once

#include <cstdint>

namespace sgl_kernels {

enum class Dtype { f32, bf16, f16 };
enum class Activation { none, silu, gelu_tanh, gelu_erf };

// The largest block of any instruction set, and a dim rounded up to it.
constexpr int64_t kMaxBlock = 32;
constexpr int64_t padded(int64_t dim) { return (dim + kMaxBlock - 1) / kMaxBlock * kMaxBlock; }

// A row of parameters in any dtype; data null means absent.
struct Param {
  const void* data;
  Dtype dtype;
};

}  // namespace sgl_kernels
