// Activations to int8 digits in tiles (see Coding in nvfp4/args.h), for AVX2, SSE2 and NEON.
#pragma once

#include "nvfp4/simd-inl.h"

namespace sgl_kernels::nvfp4 {
namespace SGL_ISA {

void quantize_rows(const Rows& x, float global_scale, int64_t begin, int64_t end, uint8_t* codes, uint8_t* scales);

namespace {

constexpr int64_t kDirectRows = 4;  // digit rows up to which the weight is decoded in registers

// Whether x is multiplied in fp32 (nvfp4/float_product-inl.h); tiles then hold its rows. For an fp32 x that is wherever
// it would take more than one row of digits. For a 16-bit x the two cost the same from 32 to 64 rows, and at 256 digits
// take 61.5 ms against 58.5 (3072 x 3072, one Zen 3 core).
constexpr bool in_floats(Coding coding, int64_t rows) {
  return (coding == Coding::wide32 && rows > 1) || (coding == Coding::wide16 && rows >= 48);
}

// One row on its way: values, digits (each k long), a scale per block, and a factor that is NaN if it is not finite.
struct Encoded {
  float* values;
  int8_t* digit[4];
  float* block_scale;
  uint8_t *codes, *scales;
  float row_scale;
};

constexpr int64_t encode_scratch_bytes(int64_t k) { return 4 * k + 4 * k + k / 4 + k / 2 + k / 16 + 64; }

inline Encoded encoded_in(char* memory, int64_t k) {
  Encoded e;
  e.values = reinterpret_cast<float*>(memory);
  e.block_scale = e.values + k;
  e.digit[0] = reinterpret_cast<int8_t*>(e.block_scale + k / kBlock);
  for (int d = 1; d < 4; ++d) {
    e.digit[d] = e.digit[d - 1] + k;
  }
  e.codes = reinterpret_cast<uint8_t*>(e.digit[3] + k);
  e.scales = e.codes + k / 2;
  e.row_scale = 0.0f;
  return e;
}

inline void encode_int8(int64_t k, Encoded& e) {
  I most = {};
  for (int64_t i = 0; i < k; i += kLanes) {
    most = larger(most, magnitude(load<F>(e.values + i)));
  }
  const int32_t bits = max_lanes(most);
  const bool finite = bits < kInfinity;
  const float amax = as_float(bits);
  e.row_scale = finite ? amax * (1.0f / 127.0f) : __builtin_nanf("");
  float multiplier = 0.0f;
  if (finite && amax > 0.0f) {
    multiplier = 127.0f / amax;
    multiplier = multiplier < 3.4028234663852886e38f ? multiplier : 3.4028234663852886e38f;
  }
  for (int64_t i = 0; i < k; i += kLanes) {
    const F product = finite ? load<F>(e.values + i) * splat(multiplier) : F{};
    const I q = nearest(rounded(product));
    store_low_bytes(e.digit[0] + i, q > 127 ? splat_int(127) : q < -127 ? splat_int(-127) : q);
  }
}

inline void encode_nvfp4(const Rows& x, int64_t row, float input_scale, Encoded& e) {
  const uint8_t* start = static_cast<const uint8_t*>(x.data) + row * x.k * bytes_of(x.type);
  quantize_rows({start, x.type, x.k}, input_scale, 0, 1, e.codes, e.scales);
  bool finite = true;
  for (int64_t b = 0; b < x.k / kBlock; ++b) {
    for (int64_t i = 0; i < kBlock / 2; ++i) {
      const uint8_t pair = e.codes[8 * b + i];
      e.digit[0][16 * b + 2 * i] = kSigned[pair & 15];
      e.digit[0][16 * b + 2 * i + 1] = kSigned[pair >> 4];
    }
    finite &= e.scales[b] != 0x7F;
    e.block_scale[b] = fp16_to_float(static_cast<uint16_t>(e.scales[b] << 7)) * 256.0f;
  }
  e.row_scale = finite ? 0.5f * input_scale : __builtin_nanf("");  // digits are twice the value
}

// Block floating point: the block's largest element gets `kBits` bits and a sign, the scale is a power of two.
template <int kDigits>
void encode_wide(int64_t k, Encoded& e) {
  constexpr int kBits = kDigits == 2 ? 14 : 30;
  constexpr int32_t kRoundUp = 0x20000;  // from 1.984 * 2^e the next exponent is taken: the top digit stays below 128
  int32_t worst = 0;
  for (int64_t b = 0; b < k / kBlock; ++b) {
    const float* v = e.values + b * kBlock;
    I most = {};
    for (int i = 0; i < kBlock; i += kLanes) {
      most = larger(most, magnitude(load<F>(v + i)));
    }
    const int32_t amax = max_lanes(most);
    worst = amax > worst ? amax : worst;
    int32_t exponent = (amax + kRoundUp) >> 23;  // biased; a block below 2^-95 keeps that scale
    exponent = exponent < 32 ? 32 : exponent;
    if (amax >= kInfinity) {  // the row is lost, and its products must stay defined
      exponent = 254;
    }
    e.block_scale[b] = as_float((exponent - kBits) << 23);
    const F up = splat(as_float((127 + kBits + 127 - exponent) << 23));
    for (int i = 0; i < kBlock; i += kLanes) {
      F scaled = load<F>(v + i) * up;
      scaled = magnitude(scaled) < kInfinity ? scaled : F{};
      // beyond 2^22 fp32 holds at most one bit of fraction, which is cut off
      I q = magnitude(scaled) < (I)splat(4194304.0f) ? nearest(scaled) : __builtin_convertvector(scaled, I);
      for (int d = 0; d < kDigits; ++d) {
        const I low = (q << 24) >> 24;
        store_low_bytes(e.digit[d] + 16 * b + i, low);
        q = (q - low) >> 8;
      }
    }
  }
  e.row_scale = worst < kInfinity ? 1.0f : __builtin_nanf("");
}

// Places a digit row at position `at` of a tile of `rows`.
inline void place(const int8_t* digit, const float* block_scale, int64_t blocks, int64_t at, int64_t rows, bool direct,
                  uint8_t* tile) {
  const int64_t step = tile_block_bytes(rows, block_scale != nullptr);
  const int8_t flip = static_cast<int8_t>(direct ? 0 : kDigitOffset);  // x ^ 128 is x + 128 in a byte
  for (int64_t b = 0; b < blocks; ++b, tile += step) {
    int32_t sum = 0;
    for (int i = 0; i < kBlock; ++i) {
      sum += digit[16 * b + i];
      tile[16 * at + i] = static_cast<uint8_t>(digit[16 * b + i] ^ flip);
    }
    const int32_t correction = -kWeightOffset * sum;
    __builtin_memcpy(tile + 16 * rows + 4 * at, &correction, 4);
    if (block_scale != nullptr) {
      __builtin_memcpy(tile + 20 * rows + 4 * at, block_scale + b, 4);
    }
  }
}

void encode(const Rows& x, Coding coding, float input_scale, int64_t row_begin, int64_t row_end, int64_t rows,
            uint8_t* tiles, float* row_scale) {
  const int64_t blocks = x.k / kBlock, count = digits(coding);
  const bool scaled = has_block_scale(coding), direct = rows * count <= kDirectRows;
  char* memory = new char[static_cast<size_t>(encode_scratch_bytes(x.k))];
  Encoded e = encoded_in(memory, x.k);
  for (int64_t row = row_begin; row < row_end; ++row) {
    if (in_floats(coding, rows)) {
      to_floats(x.data, x.type, row * x.k, x.k, reinterpret_cast<float*>(tiles) + row * x.k);
      row_scale[row] = 1.0f;
      continue;
    }
    if (coding != Coding::nvfp4) {
      to_floats(x.data, x.type, row * x.k, x.k, e.values);
    }
    switch (coding) {
      case Coding::int8:
        encode_int8(x.k, e);
        break;
      case Coding::nvfp4:
        encode_nvfp4(x, row, input_scale, e);
        break;
      case Coding::wide16:
        encode_wide<2>(x.k, e);
        break;
      case Coding::wide32:
        encode_wide<4>(x.k, e);
        break;
    }
    row_scale[row] = e.row_scale;
    for (int64_t d = 0; d < count; ++d) {
      const int64_t at = row * count + d, tile = at / kTileRows, left = rows * count - tile * kTileRows;
      place(e.digit[d], scaled ? e.block_scale : nullptr, blocks, at % kTileRows, left < kTileRows ? left : kTileRows,
            direct, tiles + tile * blocks * tile_block_bytes(kTileRows, scaled));
    }
  }
  delete[] memory;
}

}  // namespace
}  // namespace SGL_ISA
}  // namespace sgl_kernels::nvfp4
