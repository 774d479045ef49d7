// NVFP4 on the CPU: the calls that cross from the ops (nvfp4/nvfp4.cpp) to the vector code
// (nvfp4_*_<instructions>.cpp).
//
// Packed weight: panels of 64 rows (n); per block of 16 k, 576 bytes: 4 groups of 16 rows x 2 vectors of 64 bytes,
// then 64 e4m3 scales. In a vector each 32-bit lane is one row; byte b holds k = 8v + b in its low nibble and
// k = 8v + 4 + b in its high one, which are the operands of two 4-way int8 dot products.
#pragma once

#include <cstdint>

namespace sgl_kernels::nvfp4 {

constexpr int64_t kBlock = 16;         // k that share a scale
constexpr int64_t kPanel = 64;         // rows of a packed panel
constexpr int64_t kBlockBytes = 576;   // a panel's bytes for one block of k
constexpr int64_t kTileRows = 8;       // activation rows of a register tile
constexpr int64_t kRowsAtOnce = 1024;  // rows whose accumulators (256 KB a panel) stay in L2

enum class Element { f32, bf16, f16 };

// Activations enter the integer product as int8 digits. One row of x becomes `digits` rows of int8:
//   int8    1 digit, one scale for the row
//   nvfp4   1 digit (twice the e2m1 value), an e4m3 scale per block
//   wide16  2 digits: 15 bits and sign, a power of two per block (bf16 and fp16 x: finer than their own rounding)
//   wide32  4 digits: 31 bits and sign, a power of two per block (fp32 x: exact within 2^7 of the block's largest)
enum class Coding { int8, nvfp4, wide16, wide32 };

constexpr int64_t digits(Coding c) { return c == Coding::wide32 ? 4 : c == Coding::wide16 ? 2 : 1; }
constexpr bool has_block_scale(Coding c) { return c != Coding::int8; }

// Bytes of one block of a tile of `rows` digit rows: 16 int8 and an int32 correction each, maybe a float scale.
constexpr int64_t tile_block_bytes(int64_t rows, bool block_scale) { return rows * (block_scale ? 24 : 20); }

// Rows of x whose digits are that many.
constexpr int64_t digit_rows_at_once(Coding c) { return kRowsAtOnce / digits(c) / kTileRows * kTileRows; }

// A matrix of `rows` x K in memory order, any element type.
struct Rows {
  const void* data;
  Element type;
  int64_t k;
};

struct Linear {
  const uint8_t* weight;  // packed
  float global_scale;     // of the weight
  const void* bias;       // (N) or null
  Element bias_type;
  int64_t n, k;
  Coding coding;
};

// The vector code of one instruction set.
struct Nvfp4Kernels {
  const char* name;
  // Encodes digit rows of x's rows [row_begin, row_end) into tiles of kTileRows (fewer in the last); row_scale gets
  // one factor per row of x: NaN for a row that is not finite. `rows` is of all of x. Tiles are for multiply alone.
  void (*encode)(const Rows& x, Coding coding, float input_scale, int64_t row_begin, int64_t row_end, int64_t rows,
                 uint8_t* tiles, float* row_scale);

  // Panels [begin, end) of out (rows x n) from encoded activations. scratch: panel_scratch_bytes.
  void (*multiply)(const Linear& layer, const uint8_t* tiles, const float* row_scale, int64_t rows, void* out,
                   Element type, int64_t begin, int64_t end, uint8_t* scratch);
  int64_t (*panel_scratch_bytes)(int64_t rows, Coding coding);
  // How many of `rows` to encode and multiply in one go.
  int64_t (*rows_at_once)(int64_t rows, Coding coding);

  // Rows [begin, end) of x to packed codes (rows, k/2) and e4m3 block scales (rows, k/16).
  void (*quantize_rows)(const Rows& x, float global_scale, int64_t begin, int64_t end, uint8_t* codes, uint8_t* scales);

  // Largest finite |x| of n elements.
  float (*finite_amax)(const void* x, Element type, int64_t n);

  // Panel to (k, 64) values without the global scale, row stride `stride` elements, `columns` of the 64 written.
  void (*decode_panel)(const uint8_t* panel, int64_t k, Element type, void* out, int64_t stride, int64_t columns);
};

namespace avx512vbmi {  // with VNNI and VBMI: Ice Lake, Zen 4 and newer
extern const Nvfp4Kernels kKernels;
}
namespace avx2 {
extern const Nvfp4Kernels kKernels;
}
namespace baseline {  // SSE2, or NEON on aarch64
extern const Nvfp4Kernels kKernels;
}

}  // namespace sgl_kernels::nvfp4
