// NVFP4 linear layers for AVX-512 with VNNI: exact integer products, one fp32 scale per block of 16.
//
// Twice an e2m1 value is an integer, so a block's product with int8 digits is exact in int32. vpdpbusd wants its
// first operand unsigned: weights enter as 2w + 12 and the accumulator starts at -12 * sum(a), precomputed once per
// activation block, which costs no multiply. Each fp32 accumulator is an output; nothing is reduced across lanes.
#include <cmath>
#include <cstring>
#include <memory>
#include <new>

#include "nvfp4/simd_avx512vbmi.h"

namespace sgl_kernels::nvfp4::avx512vbmi {
namespace {

constexpr int64_t kDirectRows = 4;    // digit rows up to which the weight is decoded in registers
constexpr int64_t kChunkBlocks = 32;  // blocks of k decoded at once: 16 KB of weights and 4 KB of scales, in L1
constexpr int64_t kPrefetch = 12 * kBlockBytes;

struct FreeBuffer {
  void operator()(uint8_t* p) const { ::operator delete[](p, std::align_val_t{64}); }
};
using Buffer = std::unique_ptr<uint8_t[], FreeBuffer>;
Buffer make_buffer(int64_t bytes) {
  return Buffer(static_cast<uint8_t*>(::operator new[](static_cast<size_t>(bytes), std::align_val_t{64})));
}

// ---- activations -> digits -------------------------------------------------------------------------------------

// A row's digits (each k long), its scale per block, and whether it is finite.
struct Encoded {
  int8_t* digit[4];
  float* block_scale;
  float row_scale;
};

void encode_int8(const Rows& x, int64_t row, Encoded& e) {
  const int64_t base = row * x.k;
  __m512i most = _mm512_setzero_si512();
  for (int64_t k = 0; k < x.k; k += 16) {
    most = _mm512_max_epi32(most, magnitude_bits(load16(x.data, x.type, base + k)));
  }
  const int32_t bits = _mm512_reduce_max_epi32(most);
  float amax;
  std::memcpy(&amax, &bits, 4);
  const bool finite = bits < kInfinity;
  e.row_scale = finite ? amax * (1.0f / 127.0f) : NAN;
  const float multiplier = finite && amax > 0 ? std::fmin(127.0f / amax, 3.4028234663852886e38f) : 0.0f;
  if (!finite) {
    std::memset(e.digit[0], 0, x.k);
    return;
  }
  const __m512 m = _mm512_set1_ps(multiplier);
  const __m512i low = _mm512_set1_epi32(-127), high = _mm512_set1_epi32(127);
  for (int64_t k = 0; k < x.k; k += 16) {
    __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(load16(x.data, x.type, base + k), m));
    q = _mm512_min_epi32(_mm512_max_epi32(q, low), high);
    store_low_bytes(e.digit[0] + k, (I)q);
  }
}

void encode_nvfp4(const Rows& x, int64_t row, float input_scale, uint8_t* codes, uint8_t* scales, Encoded& e) {
  const uint8_t* start = static_cast<const uint8_t*>(x.data) + row * x.k * (x.type == Element::f32 ? 4 : 2);
  quantize_rows({start, x.type, x.k}, input_scale, 0, 1, codes, scales);
  const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kSigned));
  const __m128i nibble = _mm_set1_epi8(15);
  bool finite = true;
  for (int64_t b = 0; b < x.k / kBlock; ++b) {
    const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + 8 * b));
    const __m128i pairs =
        _mm_unpacklo_epi8(_mm_and_si128(packed, nibble), _mm_and_si128(_mm_srli_epi16(packed, 4), nibble));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(e.digit[0] + 16 * b), _mm_shuffle_epi8(table, pairs));
    finite &= scales[b] != 0x7F;
  }
  for (int64_t b = 0; b < x.k / kBlock; b += 16) {
    _mm512_storeu_ps(e.block_scale + b, _mm512_mul_ps(scales16(scales + b), _mm512_set1_ps(256.0f)));
  }
  e.row_scale = finite ? 0.5f * input_scale : NAN;  // digits are twice the value
}

// Block floating point: the block's largest element gets `kBits` bits and a sign, the scale is a power of two.
template <int kDigits>
void encode_wide(const Rows& x, int64_t row, Encoded& e) {
  constexpr int kBits = kDigits == 2 ? 14 : 30;
  constexpr int32_t kRoundUp = 0x20000;  // from 1.984 * 2^e the next exponent is taken: the top digit stays below 128
  const int64_t base = row * x.k;
  int32_t worst = 0;
  for (int64_t b = 0; b < x.k / kBlock; ++b) {
    const __m512 v = load16(x.data, x.type, base + b * kBlock);
    const int32_t amax = _mm512_reduce_max_epi32(magnitude_bits(v));
    worst = amax > worst ? amax : worst;
    int32_t exponent = (amax + kRoundUp) >> 23;  // biased; a block below 2^-95 keeps that scale
    exponent = exponent < 32 ? 32 : exponent;
    const int32_t up = (127 + kBits + 127 - exponent) << 23, down = (exponent - kBits) << 23;
    std::memcpy(e.block_scale + b, &down, 4);
    __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(v, _mm512_castsi512_ps(_mm512_set1_epi32(up))));
#pragma GCC unroll 4
    for (int d = 0; d < kDigits; ++d) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(e.digit[d] + 16 * b), _mm512_cvtepi32_epi8(q));
      const __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(q, 24), 24);
      q = _mm512_srai_epi32(_mm512_sub_epi32(q, low), 8);
    }
  }
  e.row_scale = worst < kInfinity ? 1.0f : NAN;
  if (worst >= kInfinity) {
    std::memset(e.block_scale, 0, static_cast<size_t>(x.k / kBlock) * 4);
  }
}

// Places a digit row at position `at` of a tile of `rows`.
void place(const int8_t* digit, const float* block_scale, int64_t blocks, int64_t at, int64_t rows, uint8_t* tile) {
  const int64_t step = tile_block_bytes(rows, block_scale != nullptr);
  const __m128i ones = _mm_set1_epi8(1);
  for (int64_t b = 0; b < blocks; ++b, tile += step) {
    const __m128i q = _mm_loadu_si128(reinterpret_cast<const __m128i*>(digit + 16 * b));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(tile + 16 * at), q);
    __m128i sum = _mm_dpbusd_epi32(_mm_setzero_si128(), ones, q);
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1));
    const int32_t correction = -kOffset * _mm_cvtsi128_si32(sum);
    std::memcpy(tile + 16 * rows + 4 * at, &correction, 4);
    if (block_scale != nullptr) {
      std::memcpy(tile + 20 * rows + 4 * at, block_scale + b, 4);
    }
  }
}

// ---- weights ---------------------------------------------------------------------------------------------------

// 32 rows of a panel, `blocks` blocks: operands [block][group of 16][4][64] and scales [block][32].
void decode_half(const uint8_t* panel, int half, int64_t blocks, uint8_t* w, float* s) {
  const __m512i table = nibble_table(kUnsigned);
  const __m512 factor = _mm512_set1_ps(128.0f);  // 2^8 of scales16, halved because weights are doubled
  for (int64_t b = 0; b < blocks; ++b, panel += kBlockBytes, w += 512, s += 32) {
#pragma GCC unroll 2
    for (int g = 0; g < 2; ++g) {
      const uint8_t* group = panel + (half * 2 + g) * 128;
      _mm512_store_ps(s + 16 * g, _mm512_mul_ps(scales16(panel + 512 + 16 * (half * 2 + g)), factor));
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const __m512i packed = _mm512_loadu_si512(group + 64 * v);
        _mm512_store_si512(w + 256 * g + 128 * v, low_nibbles(packed, table));
        _mm512_store_si512(w + 256 * g + 128 * v + 64, high_nibbles(packed, table));
      }
    }
  }
}

// ---- products --------------------------------------------------------------------------------------------------

// R digit rows x 32 columns over `blocks` blocks, added to c (row stride kPanel).
template <int R, bool kScaled>
__attribute__((noinline)) void tile_product(const uint8_t* a, const uint8_t* w, const float* s, int64_t blocks,
                                            float* c) {
  __m512 c0[R], c1[R];
#pragma GCC unroll 8
  for (int m = 0; m < R; ++m) {
    c0[m] = _mm512_load_ps(c + m * kPanel);
    c1[m] = _mm512_load_ps(c + m * kPanel + 16);
  }
  for (int64_t b = 0; b < blocks; ++b) {
    __m512i w0[4], w1[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      w0[i] = _mm512_load_si512(w + 64 * i);
      w1[i] = _mm512_load_si512(w + 256 + 64 * i);
    }
    const __m512 s0 = _mm512_load_ps(s), s1 = _mm512_load_ps(s + 16);
#pragma GCC unroll 8
    for (int m = 0; m < R; ++m) {
      __m512i t0 = broadcast4(a + 16 * R + 4 * m), t1 = t0;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m512i digits = broadcast4(a + 16 * m + 4 * i);
        t0 = _mm512_dpbusd_epi32(t0, w0[i], digits);
        t1 = _mm512_dpbusd_epi32(t1, w1[i], digits);
      }
      if constexpr (kScaled) {
        const __m512 sa = _mm512_castsi512_ps(broadcast4(a + 20 * R + 4 * m));
        c0[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(t0), _mm512_mul_ps(s0, sa), c0[m]);
        c1[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(t1), _mm512_mul_ps(s1, sa), c1[m]);
      } else {
        c0[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(t0), s0, c0[m]);
        c1[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(t1), s1, c1[m]);
      }
    }
    a += tile_block_bytes(R, kScaled);
    w += 512;
    s += 32;
  }
#pragma GCC unroll 8
  for (int m = 0; m < R; ++m) {
    _mm512_store_ps(c + m * kPanel, c0[m]);
    _mm512_store_ps(c + m * kPanel + 16, c1[m]);
  }
}

// R <= kDirectRows digit rows x a whole panel, weights decoded in registers; c is R x kPanel.
template <int R, bool kScaled>
void direct_product(const uint8_t* a, const uint8_t* panel, int64_t blocks, float* c) {
  const __m512i table = nibble_table(kUnsigned);
  __m512 acc[R][4];
#pragma GCC unroll 4
  for (int m = 0; m < R; ++m) {
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      acc[m][g] = _mm512_setzero_ps();
    }
  }
  for (int64_t b = 0; b < blocks; ++b) {
#pragma GCC unroll 9
    for (int i = 0; i < 9; ++i) {
      _mm_prefetch(reinterpret_cast<const char*>(panel) + kPrefetch + 64 * i, _MM_HINT_T0);
    }
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      const __m512i x0 = _mm512_loadu_si512(panel + 128 * g), x1 = _mm512_loadu_si512(panel + 128 * g + 64);
      const __m512i w[4] = {low_nibbles(x0, table), high_nibbles(x0, table), low_nibbles(x1, table),
                            high_nibbles(x1, table)};
      const __m512 s = scales16(panel + 512 + 16 * g);
#pragma GCC unroll 4
      for (int m = 0; m < R; ++m) {
        __m512i t = broadcast4(a + 16 * R + 4 * m);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          t = _mm512_dpbusd_epi32(t, w[i], broadcast4(a + 16 * m + 4 * i));
        }
        const __m512 scale = kScaled ? _mm512_mul_ps(s, _mm512_castsi512_ps(broadcast4(a + 20 * R + 4 * m))) : s;
        acc[m][g] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(t), scale, acc[m][g]);
      }
    }
    a += tile_block_bytes(R, kScaled);
    panel += kBlockBytes;
  }
#pragma GCC unroll 4
  for (int m = 0; m < R; ++m) {
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      _mm512_store_ps(c + m * kPanel + 16 * g, _mm512_mul_ps(acc[m][g], _mm512_set1_ps(128.0f)));
    }
  }
}

template <bool kScaled>
void tile_of(int64_t rows, const uint8_t* a, const uint8_t* w, const float* s, int64_t blocks, float* c) {
  switch (rows) {
    case 1:
      return tile_product<1, kScaled>(a, w, s, blocks, c);
    case 2:
      return tile_product<2, kScaled>(a, w, s, blocks, c);
    case 3:
      return tile_product<3, kScaled>(a, w, s, blocks, c);
    case 4:
      return tile_product<4, kScaled>(a, w, s, blocks, c);
    case 5:
      return tile_product<5, kScaled>(a, w, s, blocks, c);
    case 6:
      return tile_product<6, kScaled>(a, w, s, blocks, c);
    case 7:
      return tile_product<7, kScaled>(a, w, s, blocks, c);
    default:
      return tile_product<8, kScaled>(a, w, s, blocks, c);
  }
}

template <bool kScaled>
void direct_of(int64_t rows, const uint8_t* a, const uint8_t* panel, int64_t blocks, float* c) {
  switch (rows) {
    case 1:
      return direct_product<1, kScaled>(a, panel, blocks, c);
    case 2:
      return direct_product<2, kScaled>(a, panel, blocks, c);
    case 3:
      return direct_product<3, kScaled>(a, panel, blocks, c);
    default:
      return direct_product<4, kScaled>(a, panel, blocks, c);
  }
}

// Sums digits, applies scales and bias, rounds once.
void finish(const Linear& layer, const float* c, const float* row_scale, int64_t rows, void* out, Element type,
            int64_t panel) {
  const int64_t count = digits(layer.coding), first = panel * kPanel;
  for (int64_t m = 0; m < rows; ++m) {
    const __m512 factor = _mm512_set1_ps(row_scale[m] * layer.global_scale);
    for (int64_t g = 0; g < 4 && first + 16 * g < layer.n; ++g) {
      const int64_t column = first + 16 * g, left = layer.n - column;
      const __mmask16 mask = left >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << left) - 1);
      const float* at = c + m * count * kPanel + 16 * g;
      __m512 v = _mm512_load_ps(at + (count - 1) * kPanel);
      for (int64_t d = count - 2; d >= 0; --d) {
        v = _mm512_fmadd_ps(v, _mm512_set1_ps(256.0f), _mm512_load_ps(at + d * kPanel));
      }
      v = _mm512_mul_ps(v, factor);
      if (layer.bias != nullptr) {
        v = _mm512_add_ps(v, load16(layer.bias, layer.bias_type, column, mask));
      }
      store16(out, type, m * layer.n + column, v, mask);
    }
  }
}

template <bool kScaled>
void panel_product(const Linear& layer, const uint8_t* panel, const uint8_t* tiles, int64_t rows, float* c, uint8_t* w,
                   float* s) {
  const int64_t blocks = layer.k / kBlock;
  std::memset(c, 0, static_cast<size_t>(rows * kPanel) * sizeof(float));
  for (int64_t b = 0; b < blocks; b += kChunkBlocks) {
    const int64_t now = blocks - b < kChunkBlocks ? blocks - b : kChunkBlocks;
    for (int half = 0; half < 2; ++half) {
      decode_half(panel + b * kBlockBytes, half, now, w, s);
      for (int64_t m = 0; m < rows; m += kTileRows) {
        const int64_t r = rows - m < kTileRows ? rows - m : kTileRows;
        const uint8_t* tile = tiles + (m / kTileRows) * blocks * tile_block_bytes(kTileRows, kScaled);
        tile_of<kScaled>(r, tile + b * tile_block_bytes(r, kScaled), w, s, now, c + m * kPanel + 32 * half);
      }
    }
  }
}

void encode(const Rows& x, Coding coding, float input_scale, int64_t row_begin, int64_t row_end, int64_t rows,
            uint8_t* tiles, float* row_scale) {
  const int64_t blocks = x.k / kBlock, padded = (blocks + 15) / 16 * 16, count = digits(coding);
  const bool scaled = has_block_scale(coding);
  const Buffer buffer = make_buffer(4 * x.k + padded * 4 + x.k / 2 + padded + 64);
  Encoded e{{}, reinterpret_cast<float*>(buffer.get()), 0.0f};
  uint8_t* next = buffer.get() + padded * 4;
  for (int8_t*& d : e.digit) {
    d = reinterpret_cast<int8_t*>(next);
    next += x.k;
  }
  uint8_t *codes = next, *scales = next + x.k / 2;
  std::memset(scales, 0, static_cast<size_t>(padded));
  for (int64_t row = row_begin; row < row_end; ++row) {
    switch (coding) {
      case Coding::int8:
        encode_int8(x, row, e);
        break;
      case Coding::nvfp4:
        encode_nvfp4(x, row, input_scale, codes, scales, e);
        break;
      case Coding::wide16:
        encode_wide<2>(x, row, e);
        break;
      case Coding::wide32:
        encode_wide<4>(x, row, e);
        break;
    }
    row_scale[row] = e.row_scale;
    for (int64_t d = 0; d < count; ++d) {
      const int64_t at = row * count + d, tile = at / kTileRows, left = rows * count - tile * kTileRows;
      place(e.digit[d], scaled ? e.block_scale : nullptr, blocks, at % kTileRows, left < kTileRows ? left : kTileRows,
            tiles + tile * blocks * tile_block_bytes(kTileRows, scaled));
    }
  }
}

int64_t panel_scratch_bytes(int64_t rows, Coding coding) {
  return rows * digits(coding) * kPanel * 4 + kChunkBlocks * (512 + 128);
}

void multiply(const Linear& layer, const uint8_t* tiles, const float* row_scale, int64_t rows, void* out, Element type,
              int64_t begin, int64_t end, uint8_t* scratch) {
  const int64_t blocks = layer.k / kBlock, all = rows * digits(layer.coding);
  const bool scaled = has_block_scale(layer.coding);
  float* c = reinterpret_cast<float*>(scratch);
  uint8_t* w = scratch + all * kPanel * 4;
  float* s = reinterpret_cast<float*>(w + kChunkBlocks * 512);
  for (int64_t p = begin; p < end; ++p) {
    const uint8_t* panel = layer.weight + p * blocks * kBlockBytes;
    if (all <= kDirectRows) {
      scaled ? direct_of<true>(all, tiles, panel, blocks, c) : direct_of<false>(all, tiles, panel, blocks, c);
    } else if (scaled) {
      panel_product<true>(layer, panel, tiles, all, c, w, s);
    } else {
      panel_product<false>(layer, panel, tiles, all, c, w, s);
    }
    finish(layer, c, row_scale, rows, out, type, p);
  }
}

}  // namespace

const Nvfp4Kernels kKernels = {
    .name = "avx512vbmi",
    .encode = encode,
    .multiply = multiply,
    .panel_scratch_bytes = panel_scratch_bytes,
    .rows_at_once = [](int64_t, Coding coding) { return digit_rows_at_once(coding); },
    .quantize_rows = quantize_rows,
    .finite_amax = finite_amax,
    .decode_panel = decode_panel,
};

}  // namespace sgl_kernels::nvfp4::avx512vbmi
