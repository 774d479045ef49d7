// NVFP4 quantisation for the baseline of the architecture (SSE2, or NEON on aarch64): plain loops over a block.
//
// Bit-equal to sgl_kernels/ops/nvfp4/reference.py: the same fp32 operations in the same order.
#include "nvfp4/simd-inl.h"

namespace sgl_kernels::nvfp4::baseline {
namespace {

// An fp32 value in [0, 448] to e4m3, to nearest even, and what it decodes to.
uint8_t to_e4m3(float value, float* decoded) {
  int32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  if (value < 0x1p-6f) {  // subnormal: whole multiples of 2^-9; 2^14 has an ulp of 2^-9
    const float shifted = value + 16384.0f;
    *decoded = shifted - 16384.0f;
    return static_cast<uint8_t>(*decoded * 512.0f);
  }
  const int32_t kept = (bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20;
  *decoded = as_float(kept << 20);
  return static_cast<uint8_t>(kept - (120 << 3));
}

// Codes of kLanes scaled values: nearest, ties to even, saturating.
SGL_INLINE I codes_of(F v) {
  const F m = (F)magnitude(v);
  I code = {};
  const auto count = [&code](I mask) { code -= mask; };  // a true lane is -1
  count(m > 0.25f), count(m >= 0.75f), count(m > 1.25f), count(m >= 1.75f);
  count(m > 2.5f), count(m >= 3.5f), count(m > 5.0f);
  return code | ((v < 0.0f) & 8);
}

void quantize_block(const float* x, float encode, float back, uint8_t* codes, uint8_t* scale) {
  I most = {};
  for (int i = 0; i < kBlock; i += kLanes) {
    most = larger(most, magnitude(load<F>(x + i)));
  }
  const int32_t amax = max_lanes(most);
  if (amax >= kInfinity) {
    *scale = 0x7F;
    __builtin_memset(codes, 0, kBlock / 2);
    return;
  }
  const float scaled = rounded(encode * (as_float(amax) * (1.0f / 6.0f)));
  float decoded;
  *scale = to_e4m3(scaled < 448.0f ? scaled : 448.0f, &decoded);
  const float denominator = decoded * back, inverse = 1.0f / denominator;
  const float multiplier = denominator == 0.0f ? 0.0f : inverse < 0x1p125f ? inverse : 0x1p125f;
  int32_t code[kBlock];
  for (int i = 0; i < kBlock; i += kLanes) {
    store(code + i, codes_of(load<F>(x + i) * multiplier));
  }
  for (int i = 0; i < kBlock / 2; ++i) {
    codes[i] = static_cast<uint8_t>(code[2 * i] | code[2 * i + 1] << 4);
  }
}

}  // namespace

void quantize_rows(const Rows& x, float global_scale, int64_t begin, int64_t end, uint8_t* codes, uint8_t* scales) {
  const float encode = 1.0f / global_scale, back = 1.0f / encode;
  float block[kBlock];
  for (int64_t at = begin * x.k; at < end * x.k; at += kBlock) {
    to_floats(x.data, x.type, at, kBlock, block);
    quantize_block(block, encode, back, codes + at / 2, scales + at / kBlock);
  }
}

float finite_amax(const void* x, Element type, int64_t n) {
  I most = {};
  const int64_t whole = n / kBlock * kBlock, size = bytes_of(type);
  float block[kBlock];
  const auto meet = [&] {
    for (int i = 0; i < kBlock; i += kLanes) {
      const I m = magnitude(load<F>(block + i));
      most = larger(most, m < kInfinity ? m : I{});
    }
  };
  for (int64_t i = 0; i < whole; i += kBlock) {
    to_floats(x, type, i, kBlock, block);
    meet();
  }
  if (whole < n) {
    uint8_t tail[kBlock * 4] = {};
    __builtin_memcpy(tail, static_cast<const uint8_t*>(x) + whole * size, static_cast<size_t>((n - whole) * size));
    to_floats(tail, type, 0, kBlock, block);
    meet();
  }
  return as_float(max_lanes(most));
}

}  // namespace sgl_kernels::nvfp4::baseline
