// The kernels of norms, modulation, rope and activations: what they are given, and the choice of instruction set.
//
// A kernel gets plain pointers and strides in bytes and knows neither torch nor threads. Strides between rows are
// free; inside a row elements are adjacent. "Prepared" coefficients are fp32 arrays of padded(dim) elements in the
// block order of the row's storage type (simd/block-inl.h), so one loop serves weights of every dtype.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace sgl_kernels {

enum class Norm { rms, layer };

// gain = (weight + weight_offset) * (1 + scale) and shift = bias * (1 + scale) + shift, absent ones being neutral.
struct AffineArgs {
  Param weight, bias, scale, shift;
  float weight_offset;
  Dtype order;  // storage type of the rows the result will meet
  int64_t dim;
  float* gain;
  float* shift_out;
};

// A parameter as it is, or a cos/sin table: in the block order of `order`, or in sequence.
struct PlainArgs {
  Param from;
  Dtype order;
  bool sequential;
  int64_t dim;
  float* to;
};

struct NormArgs {
  Dtype dtype;
  Norm norm;
  bool stream;  // write past the caches: every row of out is then aligned to 64 bytes
  const char* x;
  int64_t x_step;
  char* out;
  int64_t out_step;
  int64_t rows, dim;
  float eps;
  const float* gain;
  const float* shift;  // null for none
};

// residual_out = residual + gate * x, then the norm of residual_out. norm.x is ignored.
struct ResidualNormArgs {
  NormArgs norm;
  const char* residual;
  int64_t residual_step;
  const char* x;
  int64_t x_step;
  char* residual_out;
  int64_t residual_out_step;
  const float* gate;
  char* keep;  // with stream: room for kResidualRows rows of padded(dim) elements, aligned to 64
};
constexpr int64_t kResidualRows = 4;

// out = x * gain + shift, or residual + gain * x where residual is given.
struct ModulateArgs {
  Dtype dtype;
  bool stream;
  const char* x;
  int64_t x_step;
  const char* residual;
  int64_t residual_step;
  char* out;
  int64_t out_step;
  int64_t rows, dim;
  const float* gain;
  const float* shift;  // null for none
};

// out = activation(x), times up where up is given.
struct ActivateArgs {
  Dtype dtype;
  Activation activation;
  bool stream;
  const char* x;
  int64_t x_step;
  const char* up;
  int64_t up_step;
  char* out;
  int64_t out_step;
  int64_t rows, dim;
};

// The heads of one token: RMS norm with `gain` where given, then rotation by cos and sin where given.
// cos, sin: rotary / 2 values, prepared sequentially if interleaved, else in block order. gain: with interleaved the
// rotary part is prepared as even elements and odd elements of each block whatever the dtype.
struct RopeArgs {
  Dtype dtype;
  bool interleaved, stream, normalise;
  const char* x;
  int64_t x_step;
  char* out;
  int64_t out_step;
  int64_t heads, dim, rotary;
  float eps;
  const float* gain;  // read if normalise
  const float* cos;
  const float* sin;
};

// gain of RopeArgs: `from` split as the rotation reads it.
struct RopeGainArgs {
  Param from;
  Dtype order;
  bool interleaved;
  int64_t dim, rotary;
  float* to;  // rope_gain_size(dim) elements
};
constexpr int64_t rope_gain_size(int64_t dim) { return padded(dim) + 3 * kMaxBlock; }

// Mean and sum of squared deviations of a run of elements.
struct Moments {
  double mean, squares;
};
struct MomentsArgs {
  Dtype dtype;
  const char* x;
  int64_t count;
  float eps;  // what will be added to the mean square: beside it, very small squares need no care
};

// One channel of group norm, positions adjacent: activation((x * lift - mean * lift) * gain + shift). lift is a power
// of two, 1 unless the difference or the gain would leave fp32 without it.
struct ChannelArgs {
  Dtype dtype;
  Activation activation;
  bool stream;
  const char* x;
  char* out;
  int64_t count;
  float mean, gain, shift, lift;
};

// Channels-last group norm. Statistics of `rows` positions for every group.
struct LastMomentsArgs {
  Dtype dtype;
  const char* x;
  int64_t x_step;
  int64_t rows, channels, groups;
  float eps;       // as in MomentsArgs
  float* scratch;  // 2 * padded(channels)
  Moments* out;    // groups
};
struct LastApplyArgs {
  Dtype dtype;
  Activation activation;
  bool stream;
  const char* x;
  int64_t x_step;
  char* out;
  int64_t out_step;
  int64_t rows, channels;
  const float* mean;  // each prepared per channel
  const float* gain;
  const float* shift;
  const float* lift;  // as in ChannelArgs, or null where it is 1 everywhere
};

struct RowKernels {
  void (*affine)(const AffineArgs&);
  void (*plain)(const PlainArgs&);
  void (*norm)(const NormArgs&);
  void (*residual_norm)(const ResidualNormArgs&);
  void (*modulate)(const ModulateArgs&);
  void (*activate)(const ActivateArgs&);
  void (*rope)(const RopeArgs&);
  void (*rope_gain)(const RopeGainArgs&);
  Moments (*moments)(const MomentsArgs&);
  void (*channel)(const ChannelArgs&);
  void (*last_moments)(const LastMomentsArgs&);
  void (*last_apply)(const LastApplyArgs&);
};

namespace baseline {
extern const RowKernels kKernels;
}
namespace avx2 {
extern const RowKernels kKernels;
}
namespace avx512 {
extern const RowKernels kKernels;
}
namespace avx512bf16 {
extern const RowKernels kKernels;
}

// The table in force. An op asks once for each call: what one table prepared, another cannot read.
const RowKernels& kernels();

}  // namespace sgl_kernels
