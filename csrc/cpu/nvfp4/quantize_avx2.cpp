// NVFP4 quantisation and the finite maximum for AVX2.
//
// Bit-equal to sgl_kernels/ops/nvfp4/reference.py: the same fp32 operations in the same order (results below 2^-126
// excepted, where the factor 4 folded into the multiplier saves an underflow).
#include "nvfp4/simd-inl.h"

namespace sgl_kernels::nvfp4::avx2 {
namespace {

constexpr int64_t kChunk = 128;  // elements handled at once: 8 blocks, so that scale arithmetic fills a vector
constexpr int64_t kStrip = 16;   // chunks between the two passes: 4 KB of bf16

struct Factors {
  float encode;  // 1 / global_scale
  float back;    // 1 / encode
};

SGL_INLINE __m256 set(float v) { return splat(v); }
SGL_INLINE __m256i set(int32_t v) { return (__m256i)splat_int(v); }

// Sixteen elements as fp32, in memory order; bf16 goes its own way.
template <Element T>
SGL_INLINE void load16(const void* x, int64_t at, __m256& a, __m256& b) {
  static_assert(T != Element::bf16);
  if constexpr (T == Element::f32) {
    a = load<F>(static_cast<const float*>(x) + at);
    b = load<F>(static_cast<const float*>(x) + at + 8);
  } else {
    const auto* from = static_cast<const uint16_t*>(x) + at;
    a = from_f16(load<H>(from));
    b = from_f16(load<H>(from + 8));
  }
}

// Maxima of the 8 blocks in eight vectors of bf16 magnitudes, as fp32 bits.
SGL_INLINE __m256i bf16_maxima(const __m256i (&v)[8]) {
  __m256i a[4], b[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    a[i] = _mm256_max_epi16(_mm256_unpacklo_epi16(v[i], v[i + 4]), _mm256_unpackhi_epi16(v[i], v[i + 4]));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    b[i] = _mm256_max_epi16(_mm256_unpacklo_epi32(a[i], a[i + 2]), _mm256_unpackhi_epi32(a[i], a[i + 2]));
  }
  const __m256i c = _mm256_max_epi16(_mm256_unpacklo_epi64(b[0], b[1]), _mm256_unpackhi_epi64(b[0], b[1]));
  const __m128i most = _mm_max_epi16(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1));
  // words are of blocks 0 4 2 6 1 5 3 7
  const __m128i order = _mm_setr_epi8(0, 1, 8, 9, 4, 5, 12, 13, 2, 3, 10, 11, 6, 7, 14, 15);
  return _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_shuffle_epi8(most, order)), 16);
}

// Eight vectors of fp32 magnitude bits, one per block -> their maxima.
SGL_INLINE __m256i block_maxima(const __m256i (&v)[8]) {
  __m256i a[4], b[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // 128-bit lanes: block i, block i + 4
    a[i] = _mm256_max_epi32(_mm256_permute2x128_si256(v[i], v[i + 4], 0x20),
                            _mm256_permute2x128_si256(v[i], v[i + 4], 0x31));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    b[i] = _mm256_max_epi32(_mm256_unpacklo_epi32(a[i], a[i + 2]), _mm256_unpackhi_epi32(a[i], a[i + 2]));
  }
  return _mm256_max_epi32(_mm256_unpacklo_epi32(b[0], b[1]), _mm256_unpackhi_epi32(b[0], b[1]));
}

// Magnitude bits of 8 block maxima -> e4m3 codes to `scales`, four times the multiplier of each block returned.
SGL_INLINE __m256 block_scales(__m256i amax, const Factors& f, uint8_t* scales, int* bad) {
  const __m256i spoiled = _mm256_cmpgt_epi32(amax, set(kInfinity - 1));
  *bad = _mm256_movemask_ps(_mm256_castsi256_ps(spoiled));
  const __m256 sixth = _mm256_mul_ps(_mm256_castsi256_ps(amax), set(1.0f / 6.0f));
  const __m256 scaled = _mm256_min_ps(_mm256_mul_ps(set(f.encode), sixth), set(448.0f));
  // nearest even: normal numbers on the bits, subnormal ones as multiples of 2^-9
  const __m256i bits = _mm256_castps_si256(scaled);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 20), set(1));
  const __m256i kept = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, set(0x7FFFF))), 20);
  const __m256 tiny = _mm256_cmp_ps(scaled, set(0x1p-6f), _CMP_LT_OQ);
  const __m256i steps = _mm256_cvtps_epi32(_mm256_mul_ps(scaled, set(512.0f)));
  __m256i code = _mm256_blendv_epi8(_mm256_sub_epi32(kept, set(120 << 3)), steps, _mm256_castps_si256(tiny));
  const __m256 value = _mm256_blendv_ps(_mm256_castsi256_ps(_mm256_slli_epi32(kept, 20)),
                                        _mm256_mul_ps(_mm256_cvtepi32_ps(steps), set(0x1p-9f)), tiny);
  code = _mm256_blendv_epi8(code, set(0x7F), spoiled);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(scales), _mm_packus_epi16(words, words));
  const __m256 denominator = _mm256_mul_ps(value, set(f.back));
  const __m256 live =
      _mm256_andnot_ps(_mm256_castsi256_ps(spoiled), _mm256_cmp_ps(denominator, _mm256_setzero_ps(), _CMP_NEQ_UQ));
  const __m256 inverse = _mm256_min_ps(_mm256_div_ps(set(1.0f), denominator), set(0x1p125f));
  return _mm256_and_ps(live, _mm256_mul_ps(inverse, set(4.0f)));
}

// floor + ceil of x * multiplier, clamped to +-6 (24 in quarters): it tells apart every threshold and every tie of
// e2m1, which are whole quarters: "u > b" is i > 2b and "u >= b" is i >= 2b.
SGL_INLINE __m256i quarter_steps(__m256 x, __m256 multiplier) {
  const __m256 u = _mm256_max_ps(_mm256_min_ps(_mm256_mul_ps(x, multiplier), set(24.0f)), set(-24.0f));
  return _mm256_cvtps_epi32(_mm256_add_ps(_mm256_floor_ps(u), _mm256_ceil_ps(u)));
}

// The codes of 32 bytes of steps: up to 15 a look-up, beyond it three comparisons; then the sign.
SGL_INLINE __m256i to_codes(__m256i steps) {
  const __m256i table = _mm256_setr_epi8(0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 4, 4,  //
                                         0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 4, 4);
  const __m256i i = _mm256_abs_epi8(steps);
  __m256i code = _mm256_shuffle_epi8(table, _mm256_min_epu8(i, _mm256_set1_epi8(15)));
  code = _mm256_sub_epi8(code, _mm256_cmpgt_epi8(i, _mm256_set1_epi8(20)));
  code = _mm256_sub_epi8(code, _mm256_cmpgt_epi8(i, _mm256_set1_epi8(27)));
  code = _mm256_sub_epi8(code, _mm256_cmpgt_epi8(i, _mm256_set1_epi8(40)));
  return _mm256_or_si256(code, _mm256_and_si256(_mm256_srli_epi16(steps, 4), _mm256_set1_epi8(8)));
}

// Scales of one chunk: their codes, the multipliers (x 4) of its 8 blocks, and which blocks are not finite.
template <Element T>
SGL_INLINE int scale_chunk(const void* x, int64_t at, const Factors& f, uint8_t* scales, float* multipliers) {
  __m256i v[8], amax;
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    if constexpr (T == Element::bf16) {
      v[i] = _mm256_and_si256(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(x) + at + 16 * i)),
          _mm256_set1_epi16(0x7FFF));
    } else {
      __m256 a, b;
      load16<T>(x, at + 16 * i, a, b);
      v[i] = (__m256i)larger(magnitude(a), magnitude(b));
    }
  }
  if constexpr (T == Element::bf16) {
    amax = bf16_maxima(v);
  } else {
    amax = block_maxima(v);
  }
  int bad;
  _mm256_store_ps(multipliers, block_scales(amax, f, scales, &bad));
  return bad;
}

// Two blocks to 16 bytes. bf16 splits into even and odd elements; the others are packed in order and paired after.
template <Element T>
SGL_INLINE __m128i code_pair(const void* x, int64_t at, const float* multipliers) {
  __m256i half[2];
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    const __m256 m = _mm256_broadcast_ss(multipliers + j);
    __m256 a, b;
    if constexpr (T == Element::bf16) {
      const __m256i raw =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(x) + at + 16 * j));
      a = _mm256_castsi256_ps(_mm256_slli_epi32(raw, 16));
      b = _mm256_castsi256_ps(_mm256_and_si256(raw, set(-65536)));
    } else {
      load16<T>(x, at + 16 * j, a, b);
    }
    half[j] = _mm256_packs_epi32(quarter_steps(a, m), quarter_steps(b, m));
  }
  const __m256i c = to_codes(_mm256_packs_epi16(half[0], half[1]));
  if constexpr (T == Element::bf16) {  // a 64-bit lane: 4 even, 4 odd
    const __m256i pairs = _mm256_or_si256(c, _mm256_srli_epi64(c, 28));
    return _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(pairs, _mm256_setr_epi32(0, 4, 2, 6, 0, 0, 0, 0)));
  } else {  // a 64-bit lane: elements 0-3, 8-11 of a block, the upper half of the vector 4-7, 12-15
    const __m256i pairs = _mm256_maddubs_epi16(c, _mm256_set1_epi16(0x1001));
    const __m256i bytes = _mm256_packus_epi16(pairs, pairs);
    return _mm_unpacklo_epi16(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
  }
}

// `chunks` <= kStrip whole chunks. Two passes over what is then in L1: scales have a long chain of dependent
// operations (a division among them) that would otherwise hold up the codes of their own chunk.
template <Element T>
SGL_INLINE void quantize_strip(const void* x, int64_t at, int64_t chunks, const Factors& f, uint8_t* codes,
                               uint8_t* scales) {
  alignas(32) float multipliers[kStrip * 8];
  int bad[kStrip];
  for (int64_t i = 0; i < chunks; ++i) {
    bad[i] = scale_chunk<T>(x, at + i * kChunk, f, scales + i * 8, multipliers + i * 8);
  }
  for (int64_t i = 0; i < chunks; ++i) {
    uint8_t* to = codes + i * (kChunk / 2);
#pragma GCC unroll 4
    for (int b = 0; b < 8; b += 2) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 8 * b),
                       code_pair<T>(x, at + i * kChunk + 16 * b, multipliers + i * 8 + b));
    }
    for (int b = 0; __builtin_expect(bad[i] != 0, 0); ++b, bad[i] >>= 1) {
      if (bad[i] & 1) {
        __builtin_memset(to + 8 * b, 0, 8);
      }
    }
  }
}

template <Element T>
void quantize_range(const Rows& x, const Factors& f, int64_t begin, int64_t end, uint8_t* codes, uint8_t* scales) {
  constexpr int64_t size = bytes_of(T);
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
      alignas(32) uint8_t from[kChunk * 4] = {}, c[kChunk / 2], s[kChunk / kBlock];
      __builtin_memcpy(from, static_cast<const uint8_t*>(x.data) + (base + k) * size, static_cast<size_t>(left * size));
      quantize_strip<T>(from, 0, 1, f, c, s);
      __builtin_memcpy(codes + (base + k) / 2, c, static_cast<size_t>(left / 2));
      __builtin_memcpy(scales + (base + k) / kBlock, s, static_cast<size_t>(left / kBlock));
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
  const int64_t size = bytes_of(type), step = type == Element::f32 ? 8 : 16;
  const auto* from = static_cast<const uint8_t*>(x);
  __m256i most = _mm256_setzero_si256();
  const auto meet = [&](const uint8_t* at) {  // one vector of elements, compared as whole numbers
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    if (type == Element::f32) {
      const __m256i m = _mm256_and_si256(raw, set(0x7FFFFFFF));
      most = _mm256_max_epi32(most, _mm256_and_si256(m, _mm256_cmpgt_epi32(set(kInfinity), m)));
    } else {
      const __m256i m = _mm256_and_si256(raw, _mm256_set1_epi16(0x7FFF));
      const __m256i limit = _mm256_set1_epi16(type == Element::bf16 ? 0x7F80 : 0x7C00);
      most = _mm256_max_epi16(most, _mm256_and_si256(m, _mm256_cmpgt_epi16(limit, m)));
    }
  };
  int64_t i = 0;
  for (; i + step <= n; i += step) {
    meet(from + i * size);
  }
  if (i < n) {
    uint8_t tail[32] = {};
    __builtin_memcpy(tail, from + i * size, static_cast<size_t>((n - i) * size));
    meet(tail);
  }
  float values[16];
  alignas(32) uint8_t raw[32];
  _mm256_store_si256(reinterpret_cast<__m256i*>(raw), most);
  __builtin_memset(values, 0, sizeof values);
  type == Element::f32 ? static_cast<void>(__builtin_memcpy(values, raw, 32)) : to_floats(raw, type, 0, 16, values);
  float amax = 0.0f;
  for (const float v : values) {
    amax = v > amax ? v : amax;
  }
  return amax;
}

}  // namespace sgl_kernels::nvfp4::avx2
