// The emulation's dot products, bf16 conversion and AMX tiles against scalar definitions.
#include "check_emulated.h"

namespace check {
namespace {

float bf16(uint16_t bits) {  // as the bf16 instructions read it: subnormal numbers are zeros
  const float x = std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}
float flush(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }
float step(float sum, float a, float b) {  // one FMA, rounded once: long double holds product and sum closely enough
  return flush(std::fma(a, b, flush(sum)));
}
uint16_t nearest_bf16(float x) {
  x = flush(x);
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  const uint32_t below = bits & 0xffff0000u;
  const uint32_t rest = bits - below;
  const bool up = rest > 0x8000u || (rest == 0x8000u && (below >> 16 & 1) != 0);
  return static_cast<uint16_t>((below >> 16) + (up ? 1 : 0));
}

int32_t byte_products(int32_t sum, const void* u, const void* s, int count) {
  uint32_t total = static_cast<uint32_t>(sum);
  for (int j = 0; j < count; ++j) {
    const int x = static_cast<const uint8_t*>(u)[j], y = static_cast<const int8_t*>(s)[j];
    total += static_cast<uint32_t>(x * y);
  }
  return static_cast<int32_t>(total);
}

// Mostly ordinary numbers as bf16, so that sums do not all end at infinity.
uint16_t any_bf16() { return nearest_bf16(random_bits() % 8 == 0 ? any_float() : std::ldexp(any_float(), -3)); }

}  // namespace

void dots() {
  const __m512 a = any_floats<__m512>(), b = any_floats<__m512>(), sum = any_floats<__m512>();
  CHECK(uint16_t, "cvtne2ps_pbh", _mm512_cvtne2ps_pbh(a, b),
        i < 16 ? nearest_bf16(lane<float>(b, i)) : nearest_bf16(lane<float>(a, i - 16)));
  CHECK(uint16_t, "cvtneps_pbh", _mm512_cvtneps_pbh(a), nearest_bf16(lane<float>(a, i)));
  uint16_t x[32], y[32];
  for (int i = 0; i < 32; ++i) {
    x[i] = any_bf16();
    y[i] = any_bf16();
  }
  const auto xv = reinterpret_cast<__m512bh>(_mm512_loadu_si512(x));
  const auto yv = reinterpret_cast<__m512bh>(_mm512_loadu_si512(y));
  CHECK(float, "dpbf16_ps", _mm512_dpbf16_ps(sum, xv, yv),
        step(step(lane<float>(sum, i), bf16(x[2 * i + 1]), bf16(y[2 * i + 1])), bf16(x[2 * i]), bf16(y[2 * i])));
  const __m512i n = any_bits<__m512i>(), u = any_bits<__m512i>(), s = any_bits<__m512i>();
  auto bytes = [&](int i) {
    return byte_products(lane<int32_t>(n, i), reinterpret_cast<const char*>(&u) + 4 * i,
                         reinterpret_cast<const char*>(&s) + 4 * i, 4);
  };
  CHECK(int32_t, "dpbusd_epi32", _mm512_dpbusd_epi32(n, u, s), bytes(i));
  auto low = [](const __m512i& v) { return _mm256_castsi256_si128(_mm512_castsi512_si256(v)); };
  CHECK(int32_t, "128 dpbusd_epi32", _mm_dpbusd_epi32(low(n), low(u), low(s)), bytes(i));
}

// Tile 0 (rows x columns) += tile 1 (rows x depth) * tile 2 (depth x columns), each element 32 bits.
void tiles() {
  const int rows = 1 + static_cast<int>(random_bits() % 16), columns = 1 + static_cast<int>(random_bits() % 16);
  const int depth = 1 + static_cast<int>(random_bits() % 16);
  alignas(64) uint8_t configuration[64] = {1};
  const int size[3][2] = {{rows, columns}, {rows, depth}, {depth, columns}};
  for (int t = 0; t < 3; ++t) {
    configuration[48 + t] = static_cast<uint8_t>(size[t][0]);
    configuration[16 + 2 * t] = static_cast<uint8_t>(4 * size[t][1]);
  }
  _tile_loadconfig(configuration);
  constexpr int kStride = 72;  // not a row of a tile
  float sum[16][18], out[16][18];
  int32_t total[16][18], result[16][18];
  uint16_t a[16][36], b[16][36];
  for (int r = 0; r < 16; ++r) {
    for (int c = 0; c < 18; ++c) {
      sum[r][c] = any_float();
      total[r][c] = static_cast<int32_t>(random_bits());
      out[r][c] = result[r][c] = 7;
    }
    for (int c = 0; c < 36; ++c) {
      a[r][c] = any_bf16();
      b[r][c] = any_bf16();
    }
  }
  _tile_loadd(0, sum, kStride);
  _tile_loadd(1, a, kStride);
  _tile_loadd(2, b, kStride);
  _tile_dpbf16ps(0, 1, 2);
  _tile_stored(0, out, kStride);
  for (int r = 0; r < 16; ++r) {
    for (int c = 0; c < 18; ++c) {
      float even = 0, odd = 0;
      for (int k = 0; k < depth; ++k) {
        if (r >= rows || c >= columns) break;
        even = step(even, bf16(a[r][2 * k]), bf16(b[k][2 * c]));
        odd = step(odd, bf16(a[r][2 * k + 1]), bf16(b[k][2 * c + 1]));
      }
      const float want = flush(flush(sum[r][c]) + flush(even + odd));
      compare("tile_dpbf16ps", r * 18 + c, out[r][c], r < rows && c < columns ? want : 7.0f);
    }
  }
  _tile_loadd(0, total, kStride);
  _tile_dpbusd(0, 1, 2);
  _tile_stored(0, result, kStride);
  for (int r = 0; r < 16; ++r) {
    for (int c = 0; c < 18; ++c) {
      int32_t want = total[r][c];
      for (int k = 0; k < depth; ++k) want = byte_products(want, &a[r][2 * k], &b[k][2 * (c < 16 ? c : 0)], 4);
      compare("tile_dpbusd", r * 18 + c, result[r][c], r < rows && c < columns ? want : 7);
    }
  }
  _tile_zero(0);
  _tile_stored(0, result, kStride);
  compare("tile_zero", 0, result[rows - 1][columns - 1], 0);
  _tile_release();
}

}  // namespace check
