// Attention on bf16 with AMX: tiles of 16 x 16 floats, 32 products deep. Lanes are queries here too, so a tile of
// packed K (16 keys x 16 pairs of channels) times a tile of Q^T is 16 rows of S^T, and a tile of V^T (16 channels x 16
// pairs of keys) times a tile of P^T is 16 rows of O^T: packed Q, P and O are those of the other bf16 kernel.
//
// 360 to 740 GFLOP/s on one core of a Xeon, 3.6 to 4.9 times the float kernel (benchmarks/notes/cpu_attention.md).
// Intel publishes 1,024 bf16 operations a cycle for the tiles and 64 float ones for two FMA units; D is padded to a
// multiple of 32, so from 64 on at least two thirds of that work counts. Smaller heads stay with the floats unless
// SGL_KERNELS_CPU_ISA=amx insists; other types and decoding always do.
#include "attention/bf16-inl.h"
#include "isa.h"

namespace sgl_kernels::attention {
namespace {

constexpr int kTile = 16;         // rows of a tile, and 32-bit elements of a row
constexpr int kStep = 2 * kTile;  // keys, and channels, of a pair of tiles
constexpr int kSmallestHead = 64;

// All eight tiles are whole: what does not fill them is padded with zeros.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// gcc's tile loads do not say that they read memory: without this, stores before them might still be on their way.
SGL_INLINE void finish_stores() { asm volatile("" ::: "memory"); }

// Rows [0, 32) x vectors [j, j + JV) of c = (c or 0) + a b over `depth` elements, a multiple of 16. Strides in floats.
template <int JV, bool kAdd>
SGL_INLINE void tile_products(const float* a, size_t a_stride, const float* b, size_t stride, int depth, float* c) {
  const long a_bytes = static_cast<long>(a_stride * 4), bytes = static_cast<long>(stride * 4);
  const float* a1 = a + kTile * a_stride;
  float* c1 = c + kTile * stride;
  if constexpr (kAdd) {
    _tile_loadd(0, c, bytes);
    _tile_loadd(1, c1, bytes);
    if constexpr (JV == 2) {
      _tile_loadd(2, c + kLanes, bytes);
      _tile_loadd(3, c1 + kLanes, bytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (JV == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (int e = 0; e < depth; e += kTile, a += kTile, a1 += kTile, b += kTile * stride) {
    _tile_loadd(4, a, a_bytes);
    _tile_loadd(5, a1, a_bytes);
    _tile_loadd(6, b, bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
    if constexpr (JV == 2) {
      _tile_loadd(7, b + kLanes, bytes);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, bytes);
  _tile_stored(1, c1, bytes);
  if constexpr (JV == 2) {
    _tile_stored(2, c + kLanes, bytes);
    _tile_stored(3, c1 + kLanes, bytes);
  }
}

template <int NV, bool kAdd>
SGL_INLINE void multiply_tiles(const float* a, size_t a_stride, const float* b, int depth, float* c) {
  constexpr size_t stride = static_cast<size_t>(NV) * kLanes;
  finish_stores();
  int j = 0;
  for (; j + 2 <= NV; j += 2) tile_products<2, kAdd>(a, a_stride, b + j * kLanes, stride, depth, c + j * kLanes);
  if (j < NV) tile_products<1, kAdd>(a, a_stride, b + j * kLanes, stride, depth, c + j * kLanes);
}

template <int kExponential>
struct DotAmx : DotBf16 {
  static constexpr bool kMatrixUnit = true;
  static constexpr int kDegree = kExponential;
  // 96 keys, or 48 of their pairs, are whole tiles in both products; blocks of keys are 384.
  static constexpr int kKeyStep = 96, kElementStep = kTile, kChannelStep = kStep;

  // V^T: [channel][pair of keys], zeros for missing channels and for keys up to the next multiple of 32.
  static void pack_values(const char* from, int64_t stride, int keys, int dv, int channels, size_t block_units,
                          float* to) {
    const int units = round_up(keys, kStep) / 2;
    for (int c = 0; c < channels; c += kTile) {
      for (int u0 = 0; u0 < units; u0 += kTile) {
        F block[kTile];
        for (int i = 0; i < kTile; ++i) {
          const int key = 2 * (u0 + i);
          const char* row = from + static_cast<int64_t>(key) * stride;
          const bool some = key < keys && c < dv;
          block[i] = some ? interleave(row, key + 1 < keys ? row + stride : nullptr, c, dv) : F{};
        }
        transpose(block);
        for (int i = 0; i < kTile; ++i) store(to + (c + i) * block_units + u0, block[i]);
      }
    }
  }

  // scores = score(scale * scores, key, vector), and their highest; in registers, because any store may be to a panel.
  template <int NV, class Score>
  static SGL_MEMBER void scale_scores(float* scores, float scale, Panel& panel, Score score) {
    F highest[NV];
    SGL_UNROLL for (int j = 0; j < NV; ++j) highest[j] = panel.highest[j];
    for (int i = 0; i < kStep; ++i) {
      SGL_UNROLL for (int j = 0; j < NV; ++j) {
        float* at = scores + (i * NV + j) * kLanes;
        const F s = score(load<F>(at) * scale, i, j);
        highest[j] = max(highest[j], s);
        store(at, s);
      }
    }
    SGL_UNROLL for (int j = 0; j < NV; ++j) panel.highest[j] = highest[j];
  }

  // Weights as pairs, and their sums before rounding, as in emit. exponent(score, vector).
  template <int NV, class Exponent>
  static SGL_MEMBER void weigh_scores(const float* scores, Panel& panel, float* p, Exponent exponent) {
    F sum[NV];
    SGL_UNROLL for (int j = 0; j < NV; ++j) sum[j] = panel.sum[j];
    for (int i = 0; i < kStep; i += 2) {
      SGL_UNROLL for (int j = 0; j < NV; ++j) {
        const float* at = scores + (i * NV + j) * kLanes;
        const F a = exp2<kDegree>(exponent(load<F>(at), j)), b = exp2<kDegree>(exponent(load<F>(at + NV * kLanes), j));
        sum[j] += a + b;
        store(p + (static_cast<size_t>(i / 2) * NV + j) * kLanes, pair(a, b));
      }
    }
    SGL_UNROLL for (int j = 0; j < NV; ++j) panel.sum[j] = sum[j];
  }

  // Softmax of 32 rows of scores: `keys` of them exist.
  template <int NV>
  static void weigh(float* scores, const ScoreRule& rule, bool ruled, bool bounded, int row0, int keys, Panel& panel,
                    float* p) {
    if (!ruled && !bounded && keys >= kStep) {
      scale_scores<NV>(scores, rule.scale, panel, [](F s, int, int) __attribute__((always_inline)) { return s; });
    } else if (rule.lane_bias != nullptr && rule.key_bias == nullptr && rule.cap == 0 && !bounded && keys >= kStep) {
      const float* bias = rule.lane_bias + static_cast<size_t>(row0) * NV * kLanes;
      scale_scores<NV>(scores, rule.scale, panel, [&](F s, int i, int j) __attribute__((always_inline)) {
        return biased(s, load<F>(bias + (i * NV + j) * kLanes));
      });
    } else {
      scale_scores<NV>(scores, rule.scale, panel, [&](F s, int i, int j) __attribute__((always_inline)) {
        if (rule.cap != 0) s = tanh(s) * rule.cap;
        return i < keys ? rule_score<NV>(s, rule, row0 + i, j, panel, bounded) : splat(kMinusInf);
      });
    }
    if (panel.fresh) start_panel<NV>(panel);
    F reference[NV];
    if (__builtin_expect(panel.far, 0)) {
      SGL_UNROLL for (int j = 0; j < NV; ++j) reference[j] = panel.reference[j];
      weigh_scores<NV>(scores, panel, p, [&](F s, int j) __attribute__((always_inline)) {
        return far_exponent<DotBf16>(s, reference[j]);
      });
    } else {
      SGL_UNROLL for (int j = 0; j < NV; ++j) reference[j] = panel.reference[j] + panel.reference[j];
      weigh_scores<NV>(scores, panel, p,
                       [&](F s, int j) __attribute__((always_inline)) { return s * 2.0f - reference[j]; });
    }
  }

  template <int NV>
  static void score(const float* k, const float* q, int elements, const ScoreRule& rule, bool ruled, int first,
                    int last, Panel& panel, float* p) {
    alignas(64) float scores[kStep * NV * kLanes];
    for (int j = 0; j < NV; ++j) panel.highest[j] = splat(kMinusInf);
    for (int r = first; r < last; r += kStep) {
      multiply_tiles<NV, false>(k + static_cast<size_t>(r) * elements, elements, q, elements, scores);
      const int32_t key = rule.key0 + r;
      const bool inside = key + kStep - 1 <= panel.first + rule.right && key >= panel.last - rule.left;
      weigh<NV>(scores, rule, ruled, !inside, r, last - r, panel, p + static_cast<size_t>(r / 2) * NV * kLanes);
    }
  }

  template <int NV>
  static void attend(const float* k, const float* q, int elements, const float* v, size_t block_units, int channels,
                     const ScoreRule& rule, bool ruled, int first, int last, Panel& panel, float* p) {
    first = first / kStep * kStep;
    F before[NV], decay[NV];
    begin_sums<NV>(panel, before);
    score<NV>(k, q, elements, rule, ruled, first, last, panel, p);
    const bool moved = move_reference<DotAmx, NV>(panel, before, decay);
    if (moved) {
      score<NV>(k, q, elements, rule, ruled, first, last, panel, p);
      for (int c = 0; c < channels; ++c) {
        for (int j = 0; j < NV; ++j) {
          float* o = panel.out + (static_cast<size_t>(c) * NV + j) * kLanes;
          store(o, load<F>(o) * decay[j]);
        }
      }
    }
    join_sums<NV>(panel, before, moved ? decay : nullptr);
    const int unit0 = first / 2, units = round_up(last, kStep) / 2 - unit0;
    const float* weights = p + static_cast<size_t>(unit0) * NV * kLanes;
    for (int c = 0; c < channels; c += kStep) {
      multiply_tiles<NV, true>(v + c * block_units + unit0, block_units, weights, units,
                               panel.out + static_cast<size_t>(c) * NV * kLanes);
    }
  }
};

bool serves(const Problem& p) { return p.type == Type::bf16 && (p.d >= kSmallestHead || isa_insisted()); }

size_t scratch_bytes(const Problem& p, int32_t rows) {
  return serves(p) ? blocked_scratch<DotAmx<3>>(p, rows) : kAvx512.scratch_bytes(p, rows);
}

void run(const Problem& p, const Task& task, char* scratch) {
  if (!serves(p)) return kAvx512.run(p, task, scratch);
  const TileShapes shapes;
  finish_stores();
  _tile_loadconfig(&shapes);
  if (p.lse == nullptr) {
    run_blocked<DotAmx<3>, Type::bf16>(p, task, scratch);
  } else {  // a float32 result: its sums need the full exponential
    run_blocked<DotAmx<5>, Type::bf16>(p, task, scratch);
  }
  _tile_release();
}

size_t decode_bytes(const Problem& p, const Task& task) { return kAvx512.decode_scratch_bytes(p, task); }
void decode(const Problem& p, const Task& task, char* scratch) { kAvx512.decode(p, task, scratch); }

void combine(const Problem& parts, const Problem& whole, int32_t splits, int64_t row0, int64_t row1) {
  kAvx512.combine(parts, whole, splits, row0, row1);
}

}  // namespace

const AttentionKernels kAmx = {kPanel, scratch_bytes, run, decode_bytes, decode, combine};

}  // namespace sgl_kernels::attention
