// Copies between tensors and the layouts that the tiles read: Q transposed per panel, K rows as 32-bit elements,
// V in groups of channels, masks transposed to [key][query lane], and O^T back to rows. Each costs O(rows * D) beside
// the product's O(rows * keys * D).
#pragma once

#include "attention/tile-inl.h"

namespace sgl_kernels::attention {
namespace {

static inline int32_t round_up(int32_t x, int32_t to) { return (x + to - 1) / to * to; }
static inline int32_t min_int(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t max_int(int32_t a, int32_t b) { return a > b ? a : b; }

// Rows of another head lie between one's own, often a page apart, where no hardware prefetcher follows: waiting for
// each row of V took 6 % of a bf16 task of 1024 x 1024 x 64.
constexpr int kRowsAhead = 32;
template <int kWrite = 0>
SGL_INLINE void fetch_row(const char* row, size_t bytes) {
  for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, kWrite);
}

// The rows before those that packing fetches by itself.
SGL_INLINE void fetch_first_rows(const char* rows, int64_t stride, int count, size_t bytes) {
  for (int r = 0; r < kRowsAhead && r < count; ++r) fetch_row(rows + r * stride, bytes);
}

// Walks the query rows of a task: row = group_head * sq + query.
struct RowWalk {
  int32_t group_head, query, sq;
  RowWalk(int32_t row, int32_t length) : group_head(row / length), query(row % length), sq(length) {}
  void skip(int32_t rows) {  // within the head
    query += rows - 1;
    next();
  }
  void next() {
    if (++query == sq) {
      query = 0;
      ++group_head;
    }
  }
};

// kLanes 32-bit elements of a row from element `e` on: floats, or for a bf16 dot the raw channel pairs.
template <class Dot, Type kType>
SGL_INLINE F load_elements(const char* row, int e, int channels) {
  const int n = channels - e * Dot::kUnit;
  if constexpr (Dot::kUnit == 1) {
    const char* p = row + static_cast<size_t>(e) * type_size(kType);
    return n >= kLanes ? load_as_float<kType>(p) : load_as_float<kType>(p, n);
  } else {
    static_assert(kType == Type::bf16);
    const char* p = row + static_cast<size_t>(e) * 4;
    return n >= 2 * kLanes ? load<F>(p) : Dot::load_pairs(p, n);
  }
}

// Q^T: [element][vector][lane]. `flip` holds sign bits to toggle where the scale is negative.
template <class Dot, Type kType>
void pack_queries(const Problem& p, const char* heads, RowWalk walk, const Panel& panel, int elements, uint32_t flip,
                  float* to) {
  constexpr size_t kNarrow = Dot::kUnit == 1 && kType != Type::f32 ? 2 : 1;
  const int nv = panel.vectors;
  const U toggle = U{} + flip;
  for (int j = 0; j < nv; ++j) {
    const char* row[kLanes];
    const int rows = min_int(kLanes, panel.rows - j * kLanes);
    for (int i = 0; i < rows; ++i, walk.next()) row[i] = heads + walk.group_head * p.q.head + walk.query * p.q.seq;
    for (int e = 0; e < elements; e += kLanes) {
      F block[kLanes];
      SGL_UNROLL for (int i = 0; i < kLanes; ++i) {
        if (i < rows) __builtin_prefetch(row[i] + kLanes * p.q.seq + static_cast<size_t>(e) * 4 / kNarrow);
        block[i] = i < rows ? load_elements<Dot, kType>(row[i], e, p.d) : F{};
        block[i] = as_float(reinterpret_cast<U>(block[i]) ^ toggle);
      }
      transpose(block);
      const int n = min_int(kLanes, elements - e);
      for (int i = 0; i < n; ++i) store(to + (static_cast<size_t>(e + i) * nv + j) * kLanes, block[i]);
    }
  }
}

// K: [key][element], zeros up to the next multiple of kKeyStep keys.
template <class Dot, Type kType>
void pack_keys(const char* from, int64_t stride, int keys, int channels, int elements, float* to) {
  const int whole = channels / (kLanes * Dot::kUnit) * kLanes;
  const size_t bytes = static_cast<size_t>(channels) * type_size(kType);
  for (int r = 0; r < keys; ++r, from += stride, to += elements) {
    fetch_row(from + kRowsAhead * stride, bytes);
    int e = 0;
    for (; e < whole; e += kLanes) store(to + e, load_elements<Dot, kType>(from, e, channels));
    if (e < elements) {
      const F last = load_elements<Dot, kType>(from, e, channels);
      __builtin_memcpy(to + e, &last, static_cast<size_t>(elements - e) * 4);
    }
  }
  __builtin_memset(to, 0, static_cast<size_t>(round_up(keys, Dot::kKeyStep) - keys) * elements * 4);
}

// Writes one unit of keys, `line`, to its places in the channel groups. A group of 6 goes as 8 channels in one move:
// the next unit overwrites the other two, and after the block's last unit there is no room for them.
SGL_INLINE void scatter_channels(const float* line, int channels, size_t block_units, int unit, float* to) {
  const bool room = static_cast<size_t>(unit) + 1 < block_units;
  int c = 0;
  if (room) {
    for (; channel_group(channels - c) == kChannelRows && c < channels; c += kChannelRows) {
      __builtin_memcpy(to + c * block_units + static_cast<size_t>(unit) * kChannelRows, line + c, 32);
    }
  }
  while (c < channels) {
    const int group = channel_group(channels - c);
    float* slot = to + c * block_units + static_cast<size_t>(unit) * group;
    if (group == 6) __builtin_memcpy(slot, line + c, 24);
    if (group == 4) __builtin_memcpy(slot, line + c, 16);
    if (group == 2) __builtin_memcpy(slot, line + c, 8);
    c += group;
  }
}

// V: [channel group][unit of keys][channel in group]; a group takes block_units * group elements.
// lines: room for kLines rows of `channels` rounded up to a vector. A few rows are widened before they are scattered:
// a 16-byte load that straddles two vectors still on their way to the cache waits for both.
constexpr int kLines = 4;
constexpr int kLineSlack = 2;  // floats behind the lines that a group's move may read

template <class Dot, Type kType>
void pack_values(const char* from, int64_t stride, int keys, int dv, int channels, size_t block_units, float* lines,
                 float* to) {
  const int units = (keys + Dot::kUnit - 1) / Dot::kUnit, width = round_up(channels, kLanes);
  for (int u0 = 0; u0 < units; u0 += kLines) {
    const int u1 = min_int(u0 + kLines, units);
    for (int u = u0; u < u1; ++u) {
      const char* row = from + static_cast<int64_t>(u) * Dot::kUnit * stride;
      float* line = lines + (u - u0) * width;
      for (int i = 0; i < Dot::kUnit; ++i) {
        fetch_row(row + (kRowsAhead + i) * stride, static_cast<size_t>(dv) * type_size(kType));
      }
      for (int c = 0; c < dv; c += kLanes) {
        if constexpr (Dot::kUnit == 1) {
          store(line + c, load_elements<Dot, kType>(row, c, dv));
        } else {
          const char* second = u * 2 + 1 < keys ? row + stride : nullptr;
          if (second != nullptr && dv - c >= 2 * kLanes) {
            Dot::interleave_two(row, second, c, line + c);
            c += kLanes;
          } else {
            store(line + c, Dot::interleave(row, second, c, dv));
          }
        }
      }
    }
    for (int u = u0; u < u1; ++u) scatter_channels(lines + (u - u0) * width, channels, block_units, u, to);
  }
}

// One element of a mask as a bias in half log2, where no finite one overflows; a hidden key is -inf.
static inline float mask_bias(const char* p, Type type) {
  if (type == Type::boolean) return *p != 0 ? 0.0f : kMinusInf;
  F x;
  switch (type) {
    case Type::bf16:
      x = load_as_float<Type::bf16>(p, 1);
      break;
    case Type::f16:
      x = load_as_float<Type::f16>(p, 1);
      break;
    default:
      x = load_as_float<Type::f32>(p, 1);
  }
  return x[0] * kHalfLog2e;
}

SGL_INLINE F mask_vector(const char* p, Type type) {  // kLanes contiguous elements
  switch (type) {
    case Type::boolean: {
#if defined(__AVX512F__)
      const __m128i shown = load<__m128i>(p);  // in intrinsics: gcc 12 widens a vector of bytes in six steps
      return _mm512_mask_mov_ps(splat(kMinusInf), _mm_test_epi8_mask(shown, shown), F{});
#elif defined(__AVX2__)
      const I shown = reinterpret_cast<I>(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
      return shown != 0 ? F{} : splat(kMinusInf);
#else
      typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
      const I shown = __builtin_convertvector(load<Bytes>(p), I);
      return shown != 0 ? F{} : splat(kMinusInf);
#endif
    }
    case Type::bf16:
      return load_as_float<Type::bf16>(p) * kHalfLog2e;
    case Type::f16:
      return load_as_float<Type::f16>(p) * kHalfLog2e;
    default:
      return load_as_float<Type::f32>(p) * kHalfLog2e;
  }
}

enum class MaskBlock { hidden, plain, mixed };  // every key hidden; no key touched; neither

// Bias of one query row over keys key0 .. key0+keys (also what decode uses).
static inline void mask_row(const MaskView& mask, const char* row, int key0, int keys, float* to) {
  const char* p = row + key0 * mask.key;
  int k = 0;
  if (mask.key == type_size(mask.type)) {
    for (; k + kLanes <= keys; k += kLanes) store(to + k, mask_vector(p + k * mask.key, mask.type));
  }
  for (; k < keys; ++k) to[k] = mask_bias(p + k * mask.key, mask.type);
}

// The panel's part of a mask as [key][vector][lane]. `heads`: the mask of the key head's first query head.
static inline MaskBlock pack_mask(const MaskView& mask, const char* heads, RowWalk walk, const Panel& panel, int key0,
                                  int keys, float* to) {
  const int nv = panel.vectors;
  const bool contiguous = mask.key == type_size(mask.type);
  I shown{}, touched{};
  for (int j = 0; j < nv; ++j) {
    const char* row[kLanes] = {};
    const int rows = min_int(kLanes, panel.rows - j * kLanes);
    for (int i = 0; i < rows; ++i, walk.next()) {
      row[i] = heads + walk.group_head * mask.head + walk.query * mask.query + key0 * mask.key;
    }
    for (int i = 1; i < kLanes; ++i) row[i] = i < rows ? row[i] : row[0];  // unused lanes repeat a row
    for (int k = 0; k < keys; k += kLanes) {
      F block[kLanes];
      const int n = min_int(kLanes, keys - k);
      if (contiguous && n == kLanes) {
        for (int i = 0; i < kLanes; ++i) __builtin_prefetch(row[i] + k * mask.key + kLanes * mask.query);
        SGL_UNROLL for (int i = 0; i < kLanes; ++i) block[i] = mask_vector(row[i] + k * mask.key, mask.type);
      } else {
        for (int i = 0; i < kLanes; ++i) {
          block[i] = F{};
          for (int l = 0; l < n; ++l) block[i][l] = mask_bias(row[i] + (k + l) * mask.key, mask.type);
        }
      }
      transpose(block);
      for (int i = 0; i < n; ++i) {
        shown |= block[i] != splat(kMinusInf);
        touched |= bits(block[i]);  // a bias of -0 counts, which only costs time
        store(to + (static_cast<size_t>(k + i) * nv + j) * kLanes, block[i]);
      }
    }
  }
  for (int k = keys; k < round_up(keys, kKeyAlign); ++k) {  // the rest of the last tile
    for (int j = 0; j < nv; ++j) store(to + (static_cast<size_t>(k) * nv + j) * kLanes, splat(kMinusInf));
  }
  return !any(shown) ? MaskBlock::hidden : any(touched) ? MaskBlock::mixed : MaskBlock::plain;
}

// ln(sum * 2^(2 reference)). In double, because the product's rounding would add to that of the scores: once to a row.
static inline float natural_lse(float reference, float sum) {
  const double lse = (2.0 * reference + __builtin_log2(static_cast<double>(sum))) * 0.69314718055994531;
  return lse < kLowest ? kLowest : lse > -kLowest ? -kLowest : static_cast<float>(lse);
}

// x / sum for weights of DotCareful: the sum is finite, and so is a mean of finite values.
static inline F divided(F x, float sum) {
  const F r = x * (1.0f / sum), low = splat(kLowest), high = splat(-kLowest);
  return x - x != F{} ? r : r < low ? low : r > high ? high : r;
}

// What a row says of its weights: lse, or for a key split what they are relative to and their sum.
static inline void store_lse(const Problem& p, int64_t at, float reference, float sum) {
  if (p.lse == nullptr) return;
  if (p.sums == nullptr) {
    p.lse[at] = sum == 0 ? kMinusInf : natural_lse(reference, sum);
  } else {
    p.lse[at] = reference;
    p.sums[at] = sum;
  }
}

// Rows of a chunk whose weights are fine and whose result is not: it overflowed, or V holds infinities or NaN. And rows
// that see keys and gave weight to none.
constexpr uint8_t kNoWeights = 2;
struct Failures {
  bool any = false;
  uint8_t row[kChunkRows] = {};
};

// O^T / sum back to rows, and lse. A row that saw no key is 0, whatever its products were; its lse is -inf. `lse`: the
// offset of the first head's. `failed`: of this panel's rows.
static inline void store_panel(const Problem& p, char* heads, int64_t lse, RowWalk walk, const Panel& panel,
                               bool& any_failed, uint8_t* failed) {
  const int nv = panel.vectors;
  for (int j = 0; j < nv; ++j) {
    char* row[kLanes];
    const int rows = min_int(kLanes, panel.rows - j * kLanes);
    const F sum = panel.sum[j];
    F check = sum - sum;  // NaN where a result is not finite
    for (int i = 0; i < rows; ++i, walk.next()) {
      row[i] = heads + walk.group_head * p.out.head + walk.query * p.out.seq;
      store_lse(p, lse + walk.group_head * p.lse_head + walk.query, panel.reference[j][i], sum[i]);
    }
    const F inverse = 1.0f / sum;
    const auto result = [&](int channel) __attribute__((always_inline)) {
      const F o = load<F>(panel.out + (static_cast<size_t>(channel) * nv + j) * kLanes);
      const F r = sum == F{} ? F{} : o * inverse;
      check += r * 0.0f;
      return r;
    };
    int c = 0;
#if defined(__AVX512BF16__)
    if (rows == kLanes && p.out_type == Type::bf16) {  // pairs of channels: one transpose for twice as many
      for (; c + 2 * kLanes <= p.dv; c += 2 * kLanes) {
        F block[kLanes];
        SGL_UNROLL for (int i = 0; i < kLanes; ++i) block[i] =
            as_float(narrow<Bf16>({result(c + 2 * i), result(c + 2 * i + 1)}).bits);
        transpose(block);
        SGL_UNROLL for (int i = 0; i < kLanes; ++i) {
          __builtin_prefetch(row[i] + kLanes * p.out.seq + static_cast<size_t>(c) * 2, 1);
          store(row[i] + static_cast<size_t>(c) * 2, block[i]);
        }
      }
    }
#endif
    for (; c < p.dv; c += kLanes) {
      F block[kLanes];
      const int n = min_int(kLanes, p.dv - c);
      for (int i = 0; i < kLanes; ++i) block[i] = i < n ? result(c + i) : F{};
      transpose(block);
      const size_t offset = static_cast<size_t>(c) * type_size(p.out_type);
      for (int i = 0; i < rows; ++i) __builtin_prefetch(row[i] + kLanes * p.out.seq + offset, 1);
      if (rows < kLanes || n < kLanes) {
        for (int i = 0; i < rows; ++i) store_from_float(row[i] + offset, block[i], p.out_type, n);
      } else if (p.out_type == Type::f32) {
        SGL_UNROLL for (int i = 0; i < kLanes; ++i) store(row[i] + offset, block[i]);
      } else if (p.out_type == Type::bf16) {
        SGL_UNROLL for (int i = 0; i < kLanes; ++i) store(row[i] + offset, to_bf16(block[i]));
      } else {
        SGL_UNROLL for (int i = 0; i < kLanes; ++i) store(row[i] + offset, to_f16(block[i]));
      }
    }
    const I bad = (check != check) & (sum == sum);
    if (__builtin_expect(any(bad), 0)) {
      for (int i = 0; i < rows; ++i) failed[j * kLanes + i] = bad[i] != 0;
      any_failed = true;
    }
  }
}

// Only the rows that failed before. A mean of finite values is finite: what rounding lifts above the largest is that.
static inline void store_failed(const Problem& p, char* heads, int64_t lse, RowWalk walk, const Panel& panel,
                                const uint8_t* failed) {
  for (int r = 0; r < panel.rows; ++r, walk.next()) {
    if (!failed[r]) continue;
    char* row = heads + walk.group_head * p.out.head + walk.query * p.out.seq;
    const int j = r / kLanes, lane = r % kLanes;
    if (failed[r] == kNoWeights) {
      const int64_t at = lse + walk.group_head * p.lse_head + walk.query;
      store_lse(p, at, panel.reference[j][lane], panel.sum[j][lane] * kCarefulUnshift);
    }
    for (int c = 0; c < p.dv; c += kLanes) {
      const int n = min_int(kLanes, p.dv - c);
      F x{};
      for (int i = 0; i < n; ++i) x[i] = panel.out[(static_cast<size_t>(c + i) * panel.vectors + j) * kLanes + lane];
      store_from_float(row + static_cast<size_t>(c) * type_size(p.out_type), divided(x, panel.sum[j][lane]), p.out_type,
                       n);
    }
  }
}

}  // namespace
}  // namespace sgl_kernels::attention
