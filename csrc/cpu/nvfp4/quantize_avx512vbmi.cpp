// NVFP4 quantisation, the finite maximum, and decoding of packed panels, for AVX-512 with VBMI.
//
// Bit-equal to sgl_kernels/ops/nvfp4/reference.py: the same fp32 operations in the same order (results below 2^-126
// excepted, where the factor 4 folded into the multiplier saves an underflow).
#include <cstring>

#include "nvfp4/simd_avx512vbmi.h"

namespace sgl_kernels::nvfp4::avx512vbmi {
namespace {

constexpr int64_t kChunk = 256;  // elements handled at once: 16 blocks, so that scale arithmetic fills a vector
constexpr int64_t kStrip = 16;   // chunks between the two passes: 8 KB of bf16

// For u = 4|x|, i = floor(u) + ceil(u) tells apart every threshold and every tie of e2m1 (they are whole u):
// "u > b" is i > 2b and "u >= b" is i >= 2b. The table maps i, at most 48, to the magnitude's code.
struct CodeTable {
  alignas(64) uint8_t code[64];
};
constexpr CodeTable make_table() {
  CodeTable t{};
  constexpr int first[7] = {3, 6, 11, 14, 21, 28, 41};  // x > .25, >= .75, > 1.25, >= 1.75, > 2.5, >= 3.5, > 5
  for (int i = 0; i < 64; ++i) {
    int c = 0;
    while (c < 7 && i >= first[c]) {
      ++c;
    }
    t.code[i] = static_cast<uint8_t>(c);
  }
  return t;
}
constexpr CodeTable kCodes = make_table();

struct Factors {
  float encode;  // 1 / global_scale
  float back;    // 1 / encode
};

// Magnitude bits of 16 block maxima -> e4m3 codes to `scales`, four times the multiplier of each block returned.
SGL_INLINE __m512 block_scales(__m512i amax_bits, const Factors& f, uint8_t* scales, __mmask16* bad) {
  *bad = _mm512_cmpge_epi32_mask(amax_bits, _mm512_set1_epi32(kInfinity));
  const __m512 sixth = _mm512_mul_ps(_mm512_castsi512_ps(amax_bits), _mm512_set1_ps(1.0f / 6.0f));
  const __m512 scaled = _mm512_min_ps(_mm512_mul_ps(_mm512_set1_ps(f.encode), sixth), _mm512_set1_ps(448.0f));
  // nearest even: normal numbers on the bits, subnormal ones as multiples of 2^-9
  const __m512i bits = _mm512_castps_si512(scaled);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 20), _mm512_set1_epi32(1));
  const __m512i kept = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFFF))), 20);
  const __mmask16 tiny = _mm512_cmp_ps_mask(scaled, _mm512_set1_ps(0x1p-6f), _CMP_LT_OQ);
  const __m512i steps = _mm512_cvtps_epi32(_mm512_mul_ps(scaled, _mm512_set1_ps(512.0f)));
  __m512i code = _mm512_mask_mov_epi32(_mm512_sub_epi32(kept, _mm512_set1_epi32(120 << 3)), tiny, steps);
  const __m512 value = _mm512_mask_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(kept, 20)), tiny,
                                          _mm512_cvtepi32_ps(steps), _mm512_set1_ps(0x1p-9f));
  code = _mm512_mask_mov_epi32(code, *bad, _mm512_set1_epi32(0x7F));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(scales), _mm512_cvtepi32_epi8(code));
  const __m512 denominator = _mm512_mul_ps(value, _mm512_set1_ps(f.back));
  const __mmask16 live = _mm512_cmp_ps_mask(denominator, _mm512_setzero_ps(), _CMP_NEQ_UQ) & ~*bad;
  const __m512 inverse = _mm512_min_ps(_mm512_div_ps(_mm512_set1_ps(1.0f), denominator), _mm512_set1_ps(0x1p125f));
  return _mm512_maskz_mul_ps(live, inverse, _mm512_set1_ps(4.0f));
}

// floor + ceil of x * multiplier, clamped to +-6 (24 in quarters).
SGL_INLINE __m512i quarter_steps(__m512 x, __m512 multiplier) {
  const __m512 u = _mm512_range_ps(_mm512_mul_ps(x, multiplier), _mm512_set1_ps(24.0f), 2);  // smaller |.|, sign of x
  return _mm512_add_epi32(_mm512_cvt_roundps_epi32(u, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC),
                          _mm512_cvt_roundps_epi32(u, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC));
}

// One table look-up of |i| and the sign put back: a 128-entry vpermi2b is three micro-operations on Intel.
SGL_INLINE __m512i to_codes(__m512i steps) {
  const __m512i magnitudes = _mm512_permutexvar_epi8(_mm512_abs_epi8(steps), _mm512_load_si512(kCodes.code));
  const __m512i signs = _mm512_srli_epi16(steps, 4);  // bit 7 to bit 3; the other bits are masked off
  return _mm512_ternarylogic_epi32(_mm512_set1_epi8(8), signs, magnitudes, 0xEA);  // (8 & signs) | magnitudes
}

SGL_INLINE void clear_bad(__mmask16 bad, uint8_t* codes) {
  for (int b = 0; bad != 0; ++b, bad = static_cast<__mmask16>(bad >> 1)) {
    if (bad & 1) {
      std::memset(codes + 8 * b, 0, 8);
    }
  }
}

// Maxima of the 16 blocks in eight vectors of bf16 magnitudes, as fp32 bits.
SGL_INLINE __m512i bf16_maxima(const __m512i (&v)[8]) {
  __m512i a[4], b[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    a[i] = _mm512_max_epu16(_mm512_unpacklo_epi16(v[i], v[i + 4]), _mm512_unpackhi_epi16(v[i], v[i + 4]));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    b[i] = _mm512_max_epu16(_mm512_unpacklo_epi32(a[i], a[i + 2]), _mm512_unpackhi_epi32(a[i], a[i + 2]));
  }
  __m512i c = _mm512_max_epu16(_mm512_unpacklo_epi64(b[0], b[1]), _mm512_unpackhi_epi64(b[0], b[1]));
  c = _mm512_max_epu16(c, _mm512_shuffle_i64x2(c, c, 0xB1));
  // words of a 128-bit lane: vectors 0 4 2 6 1 5 3 7; lane 0 their first block, lane 2 their second
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 0, 0, 16, 0, 4, 0, 20, 0, 2, 0, 18, 0, 6, 0, 22,
                                                      0, 1, 0, 17, 0, 5, 0, 21, 0, 3, 0, 19, 0, 7, 0, 23};
  return _mm512_maskz_permutexvar_epi16(0xAAAAAAAA, _mm512_load_si512(kOrder), c);
}

// Scales of one chunk: their codes, the multipliers (x 4) of its 16 blocks, and which blocks are not finite.
template <Element T>
SGL_INLINE __mmask16 scale_chunk(const void* x, int64_t at, const Factors& f, uint8_t* scales, float* multipliers) {
  __m512i amax;
  if constexpr (T == Element::bf16) {
    __m512i v[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      v[i] = _mm512_and_si512(_mm512_loadu_si512(static_cast<const uint16_t*>(x) + at + 32 * i),
                              _mm512_set1_epi16(0x7FFF));
    }
    amax = bf16_maxima(v);
  } else {
    __m512i v[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      v[i] = magnitude_bits(load16(x, T, at + 16 * i));
    }
    amax = block_maxima(v);
  }
  __mmask16 bad;
  _mm512_store_ps(multipliers, block_scales(amax, f, scales, &bad));
  return bad;
}

// bf16: a vector of 32 is split into its even and odd elements, 64 at a time become 32 bytes.
SGL_INLINE void code_chunk_bf16(const uint16_t* x, const float* multipliers, uint8_t* codes) {
  const __m512 m16 = _mm512_load_ps(multipliers);
  const __m512i first = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    __m512i half[2];
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m512i raw = _mm512_loadu_si512(x + 32 * (i + j));
      const __m512 m = _mm512_permutexvar_ps(_mm512_add_epi32(first, _mm512_set1_epi32(2 * (i + j))), m16);
      const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(raw, 16));
      const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(raw, _mm512_set1_epi32(-65536)));
      half[j] = _mm512_packs_epi32(quarter_steps(even, m), quarter_steps(odd, m));
    }
    const __m512i c = to_codes(_mm512_packs_epi16(half[0], half[1]));  // per lane: 4 even, 4 odd, 4 even, 4 odd
    const __m512i pairs = _mm512_or_si512(c, _mm512_srli_epi64(c, 28));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + 16 * i),
                        _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, pairs)));
  }
}

template <Element T>
SGL_INLINE void code_chunk(const void* x, int64_t at, const float* multipliers, uint8_t* codes) {
  if constexpr (T == Element::bf16) {
    code_chunk_bf16(static_cast<const uint16_t*>(x) + at, multipliers, codes);
    return;
  }
  alignas(32) static constexpr uint8_t kGather[32] = {0, 2,  16, 18, 32, 34, 48, 50, 4,  6,  20, 22, 36, 38, 52, 54,
                                                      8, 10, 24, 26, 40, 42, 56, 58, 12, 14, 28, 30, 44, 46, 60, 62};
  const __m512i gather = _mm512_castsi256_si512(_mm256_load_si256(reinterpret_cast<const __m256i*>(kGather)));
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    __m512i s[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      s[j] = quarter_steps(load16(x, T, at + 16 * (i + j)), _mm512_set1_ps(multipliers[i + j]));
    }
    const __m512i c = to_codes(_mm512_packs_epi16(_mm512_packs_epi32(s[0], s[1]), _mm512_packs_epi32(s[2], s[3])));
    const __m512i pairs = _mm512_or_si512(c, _mm512_srli_epi16(c, 4));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + 8 * i),
                        _mm512_castsi512_si256(_mm512_permutexvar_epi8(gather, pairs)));
  }
}

// `chunks` <= kStrip whole chunks. Two passes over what is then in L1: scales have a long chain of dependent
// operations (a division among them) that would otherwise hold up the codes of their own chunk.
template <Element T>
SGL_INLINE void quantize_strip(const void* x, int64_t at, int64_t chunks, const Factors& f, uint8_t* codes,
                               uint8_t* scales) {
  alignas(64) float multipliers[kStrip * 16];
  __mmask16 bad[kStrip];
  for (int64_t i = 0; i < chunks; ++i) {
    bad[i] = scale_chunk<T>(x, at + i * kChunk, f, scales + i * 16, multipliers + i * 16);
  }
  for (int64_t i = 0; i < chunks; ++i) {
    code_chunk<T>(x, at + i * kChunk, multipliers + i * 16, codes + i * (kChunk / 2));
    if (__builtin_expect(bad[i] != 0, 0)) {
      clear_bad(bad[i], codes + i * (kChunk / 2));
    }
  }
}

template <Element T>
void quantize_range(const Rows& x, const Factors& f, int64_t begin, int64_t end, uint8_t* codes, uint8_t* scales) {
  constexpr int64_t size = T == Element::f32 ? 4 : 2;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t base = row * x.k;
    int64_t k = 0;
    while (k + kChunk <= x.k) {
      const int64_t whole = (x.k - k) / kChunk, chunks = whole < kStrip ? whole : kStrip;
      quantize_strip<T>(x.data, base + k, chunks, f, codes + (base + k) / 2, scales + (base + k) / kBlock);
      k += chunks * kChunk;
    }
    if (k < x.k) {  // the last blocks of a row, padded with zeros in a buffer
      const int64_t left = x.k - k;
      alignas(64) uint8_t from[kChunk * 4] = {}, c[kChunk / 2], s[kChunk / kBlock];
      std::memcpy(from, static_cast<const uint8_t*>(x.data) + (base + k) * size, left * size);
      quantize_strip<T>(from, 0, 1, f, c, s);
      std::memcpy(codes + (base + k) / 2, c, left / 2);
      std::memcpy(scales + (base + k) / kBlock, s, left / kBlock);
    }
  }
}

}  // namespace

void quantize_rows(const Rows& x, float global_scale, int64_t begin, int64_t end, uint8_t* codes, uint8_t* scales) {
  const float encode = 1.0f / global_scale;
  const Factors f{encode, 1.0f / encode};
  switch (x.type) {
    case Element::f32:
      return quantize_range<Element::f32>(x, f, begin, end, codes, scales);
    case Element::bf16:
      return quantize_range<Element::bf16>(x, f, begin, end, codes, scales);
    case Element::f16:
      return quantize_range<Element::f16>(x, f, begin, end, codes, scales);
  }
}

float finite_amax(const void* x, Element type, int64_t n) {
  __m512i most[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  int64_t i = 0;
  if (type == Element::bf16) {
    const auto* p = static_cast<const uint16_t*>(x);
    const __m512i limit = _mm512_set1_epi16(0x7F80);
    for (; i + 64 <= n; i += 64) {
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        const __m512i m = _mm512_and_si512(_mm512_loadu_si512(p + i + 32 * j), _mm512_set1_epi16(0x7FFF));
        most[j] = _mm512_mask_max_epu16(most[j], _mm512_cmplt_epu16_mask(m, limit), most[j], m);
      }
    }
    const __m512i both = _mm512_max_epu16(most[0], most[1]);
    most[0] = _mm512_slli_epi32(both, 16);
    most[1] = _mm512_and_si512(both, _mm512_set1_epi32(-65536));
  }
  for (; i < n; i += 16) {
    const __mmask16 mask = n - i >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m512i m = magnitude_bits(load16(x, type, i, mask));
    const __mmask16 finite = _mm512_cmplt_epi32_mask(m, _mm512_set1_epi32(kInfinity));
    most[0] = _mm512_mask_max_epi32(most[0], finite, most[0], m);
  }
  return _mm512_reduce_max_ps(_mm512_castsi512_ps(_mm512_max_epi32(most[0], most[1])));
}

void decode_panel(const uint8_t* panel, int64_t k, Element type, void* out, int64_t stride, int64_t columns) {
  const __m512 table = _mm512_setr_ps(0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6);
  for (int64_t b = 0; b < k / kBlock; ++b, panel += kBlockBytes) {
    for (int64_t s = 0; s < 4 && 16 * s < columns; ++s) {
      const int64_t left = columns - 16 * s;
      const __mmask16 mask = left >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << left) - 1);
      const __m512 scale = _mm512_mul_ps(scales16(panel + 512 + 16 * s), _mm512_set1_ps(256.0f));
      for (int v = 0; v < 2; ++v) {
        __m512i x = _mm512_loadu_si512(panel + s * 128 + v * 64);
        for (int nibble = 0; nibble < 8; ++nibble, x = _mm512_srli_epi32(x, 4)) {
          const int64_t row = b * kBlock + 8 * v + (nibble & 1) * 4 + nibble / 2;
          store16(out, type, row * stride + 16 * s, _mm512_mul_ps(_mm512_permutexvar_ps(x, table), scale), mask);
        }
      }
    }
  }
}

}  // namespace sgl_kernels::nvfp4::avx512vbmi
