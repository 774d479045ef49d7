// AMX: eight tiles of up to 16 rows of 64 bytes, of each thread. What the processor answers with a fault traps here.
#pragma once

#include "avx512_basic.h"
#include "avx512_dot.h"

namespace emulated {

struct Tiles {
  uint8_t configuration[64];  // as given to ldtilecfg; byte 0 (the palette) is 0 without one
  uint8_t data[8][16][64];
};

inline Tiles& tiles() {
  static thread_local Tiles mine = {};
  return mine;
}

inline int tile_rows(int tile) {
  const Tiles& t = tiles();
  if (t.configuration[0] != 1 || tile < 0 || tile > 7) __builtin_trap();
  return t.configuration[48 + tile];
}

inline int tile_bytes(int tile) {  // of a row
  const Tiles& t = tiles();
  return t.configuration[16 + 2 * tile] | t.configuration[17 + 2 * tile] << 8;
}

inline void check_product(int to, int a, int b) {
  const bool distinct = to != a && to != b && a != b;
  const bool fits = tile_rows(to) == tile_rows(a) && tile_bytes(to) == tile_bytes(b) &&
                    tile_bytes(a) == 4 * tile_rows(b) && tile_bytes(to) % 4 == 0;
  if (!distinct || !fits || tile_rows(a) == 0 || tile_bytes(a) == 0 || tile_bytes(b) == 0) __builtin_trap();
}

template <class T>
T tile_at(int tile, int row, int column) {
  T x;
  __builtin_memcpy(&x, &tiles().data[tile][row][column * sizeof(T)], sizeof(T));
  return x;
}

// What a write leaves beyond a tile's configured size is zero.
inline void clear_tile(int tile) { __builtin_memset(tiles().data[tile], 0, sizeof tiles().data[tile]); }

inline void load_tile_configuration(const void* from) {
  Tiles& t = tiles();
  __builtin_memcpy(t.configuration, from, 64);
  __builtin_memset(t.data, 0, sizeof t.data);
  const uint8_t* c = t.configuration;
  if (c[0] > 1 || c[1] != 0) __builtin_trap();  // start_row is for interrupted loads
  for (int i = 2; i < 16; ++i) {
    if (c[i] != 0) __builtin_trap();
  }
  for (int i = 0; i < 8; ++i) {
    if (c[0] == 1 && (c[48 + i] > 16 || tile_bytes(i) > 64)) __builtin_trap();
    if (c[0] == 1 && (c[48 + i] == 0) != (tile_bytes(i) == 0)) __builtin_trap();
    if (c[32 + 2 * i] != 0 || c[33 + 2 * i] != 0 || c[56 + i] != 0) __builtin_trap();
  }
}

inline void load_tile(int tile, const void* from, long stride) {
  const int rows = tile_rows(tile), bytes = tile_bytes(tile);
  if (rows == 0) __builtin_trap();
  clear_tile(tile);
  for (int r = 0; r < rows; ++r) {
    __builtin_memcpy(tiles().data[tile][r], static_cast<const char*>(from) + r * stride, bytes);
  }
}

inline void store_tile(int tile, void* to, long stride) {
  const int rows = tile_rows(tile), bytes = tile_bytes(tile);
  if (rows == 0) __builtin_trap();
  for (int r = 0; r < rows; ++r) __builtin_memcpy(static_cast<char*>(to) + r * stride, tiles().data[tile][r], bytes);
}

// tdpbf16ps: even and odd products are summed apart, then together, then added.
inline void multiply_bf16_tiles(int to, int a, int b) {
  check_product(to, a, b);
  const int rows = tile_rows(to), depth = tile_rows(b), columns = tile_bytes(to) / 4;
  for (int m = 0; m < rows; ++m) {
    alignas(32) float sum[16];
    __builtin_memcpy(sum, tiles().data[to][m], 64);
    for (int half = 0; half < 2; ++half) {
      __m256 even = _mm256_setzero_ps(), odd = even;
      for (int k = 0; k < depth; ++k) {
        const __m256i x = _mm256_set1_epi32(tile_at<int32_t>(a, m, k));
        const __m256i y = load<__m256i>(&tiles().data[b][k][32 * half]);
        even = add_product(even, even_bf16(x), even_bf16(y));
        odd = add_product(odd, odd_bf16(x), odd_bf16(y));
      }
      const __m256 both = without_subnormals(_mm256_add_ps(even, odd));
      const __m256 before = without_subnormals(_mm256_load_ps(sum + 8 * half));
      _mm256_store_ps(sum + 8 * half, without_subnormals(_mm256_add_ps(before, both)));
    }
    __builtin_memset(tiles().data[to][m], 0, 64);
    __builtin_memcpy(tiles().data[to][m], sum, static_cast<size_t>(columns) * 4);
  }
}

// tdpbusd: unsigned bytes of a, signed bytes of b.
inline void multiply_byte_tiles(int to, int a, int b) {
  check_product(to, a, b);
  const int rows = tile_rows(to), depth = tile_rows(b), columns = tile_bytes(to) / 4;
  for (int m = 0; m < rows; ++m) {
    alignas(32) int32_t sum[16];
    __builtin_memcpy(sum, tiles().data[to][m], 64);
    for (int half = 0; half < 2; ++half) {
      __m256i total = load<__m256i>(sum + 8 * half);
      for (int k = 0; k < depth; ++k) {
        const __m256i x = _mm256_set1_epi32(tile_at<int32_t>(a, m, k));
        total = dot_bytes(total, x, load<__m256i>(&tiles().data[b][k][32 * half]));
      }
      __builtin_memcpy(sum + 8 * half, &total, 32);
    }
    __builtin_memset(tiles().data[to][m], 0, 64);
    __builtin_memcpy(tiles().data[to][m], sum, static_cast<size_t>(columns) * 4);
  }
}

}  // namespace emulated

#define _tile_loadconfig(from) emulated::load_tile_configuration(from)
#define _tile_release() __builtin_memset(&emulated::tiles(), 0, sizeof(emulated::Tiles))
#define _tile_zero(tile) (emulated::tile_rows(tile), emulated::clear_tile(tile))
#define _tile_loadd(tile, from, stride) emulated::load_tile(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated::store_tile(tile, to, stride)
#define _tile_dpbf16ps(to, a, b) emulated::multiply_bf16_tiles(to, a, b)
#define _tile_dpbusd(to, a, b) emulated::multiply_byte_tiles(to, a, b)
