// Register tiles of the blocked kernel. Lanes are queries: S^T = K Q^T and O^T = V^T P^T, so K rows and packed V are
// read one 32-bit element at a time as broadcasts, softmax is vertical (no reduction across lanes), and a head_dim
// such as 72 wastes nothing.
//
// A Dot says what a 32-bit element is: one float (DotF32), or two adjacent bf16 (DotBf16, AVX-512 BF16 only).
#pragma once

#include "attention/elements-inl.h"

namespace sgl_kernels::attention {
namespace {

// Scores are kept as half their log2: s * log2(e) / 2. Any finite score or bias stays finite there, and doubling is
// exact, so that a weight is 2^(2 t - 2 reference) in one FMA. A hidden score is -inf, and nothing else is.
constexpr float kHalfLog2e = 0.72134752f;
constexpr float kRedo = 30.0f;           // a block is redone once a score exceeds the reference by 2^60
constexpr float kFarScore = 1048576.0f;  // a reference beyond it is too coarse for an FMA's unrounded score
constexpr float kMinusInf = -__builtin_inff();
constexpr float kLowest = -3.40282347e38f;

// The widest tile is 6 x 4 vectors: 24 accumulators, 4 operands and a broadcast fill 32 registers, and 24 chains hide
// the latency of two FMA (or bf16 dot) units; 12 chains lost 10 to 20 %. With 16 registers it is 6 x 2.
constexpr int kMaxVectors = kManyRegisters ? 4 : 2;
constexpr int kPanel = kMaxVectors * kLanes;
template <int NV>
constexpr int kKeyRows = kManyRegisters ? (NV == 4   ? 6
                                           : NV == 3 ? 8
                                                     : 12)
                                        : (NV == 2 ? 6 : 12);
constexpr int kKeyAlign = 24;    // a multiple of every kKeyRows: blocks of keys start on tile borders
constexpr int kChannelRows = 6;  // V is packed in groups of 6 channels, the last ones in 4 and 2

// How packed K and V are padded for these tiles. A matrix unit packs and multiplies by its own means.
struct RegisterTiles {
  static constexpr bool kMatrixUnit = false;
  static constexpr int kKeyStep = kKeyAlign, kElementStep = 1, kChannelStep = 2;
  static constexpr bool kCareful = false;
};

struct DotF32 : RegisterTiles {
  static constexpr int kUnit = 1;    // channels, or keys, per 32-bit element
  static constexpr int kDegree = 5;  // of exp2's polynomial
  static SGL_MEMBER F dot(F sum, F a, F b) { return a * b + sum; }
};

// For rows whose result was not finite. The weights are at most 2^-32, so that sums over 2^28 keys of any finite V stay
// finite, and a hidden key, the only one whose weight is 0, adds nothing whatever its V holds.
struct DotCareful : DotF32 {
  static constexpr bool kCareful = true;
};
constexpr float kCarefulShift = 32.0f;
constexpr float kCarefulUnshift = 0x1p32f;
constexpr float kLowestExponent = -0x1p100f;
constexpr float kLeastWeight = 0x1p-126f;

template <class Dot>
SGL_INLINE F add_weighted(F sum, F v, F weight) {
  if constexpr (!Dot::kCareful) return Dot::dot(sum, v, weight);
  return weight == F{} ? sum : sum + v * weight;
}

// A product that overflowed below is the lowest score there is, and no hidden one. Only rows that failed are asked.
template <class Dot>
SGL_INLINE F saturated(F s) {
  if constexpr (!Dot::kCareful) return s;
  return max(splat(kLowest), s);
}

// The weight of exponent t; `careful` weights tell hidden keys, of -inf, from those too far below the others.
template <class Dot>
SGL_INLINE F weight_of(F t) {
  const F weight = exp2<Dot::kDegree>(t);
  if constexpr (!Dot::kCareful) return weight;
  return t == splat(kMinusInf) ? F{} : max(splat(kLeastWeight), weight);
}

// Running state of one panel of up to kPanel query rows.
struct Panel {
  F reference[kMaxVectors];  // scores are taken relative to it: any earlier score, not the maximum
  F sum[kMaxVectors];        // of the weights, 2^(2 score - 2 reference)
  F highest[kMaxVectors];    // of this block
  I position[kMaxVectors];   // query index of each lane
  float* out;                // O^T [dv padded to even][NV][lanes]
  bool fresh;                // no reference yet
  bool far;                  // some reference is beyond kFarScore
  bool begun;                // out holds products of earlier blocks
  int32_t first, last;       // lowest and highest query index
  int32_t rows, vectors;
};

// How scores of one block become exponents. Pointers may be null.
struct ScoreRule {
  float scale;             // to half log2, not negative; with softcap: scale / cap
  float cap;               // softcap as half log2, or 0
  const float* key_bias;   // [key] half log2; -inf hides
  const float* lane_bias;  // [key][NV * lanes]
  int32_t left, right;     // key <= position + right, key >= position - left
  int32_t key0;            // of the block
};

template <class Dot, int ROWS, int NV>
SGL_INLINE void multiply_rows(const float* a, size_t stride, const float* b, int depth, F (&acc)[ROWS][NV]) {
  // Three rows are reached from one base register (+0, +1, +2 strides).
  const float* base[4] = {a, a + 3 * stride, a + 6 * stride, a + 9 * stride};
#pragma GCC unroll 2
  for (int k = 0; k < depth; ++k) {
    F bv[NV];
    SGL_UNROLL for (int j = 0; j < NV; ++j) bv[j] = load<F>(b + (static_cast<size_t>(k) * NV + j) * kLanes);
    SGL_UNROLL for (int i = 0; i < ROWS; ++i) {
      const F av = splat(base[i / 3][static_cast<size_t>(i % 3) * stride + k]);
      SGL_UNROLL for (int j = 0; j < NV; ++j) acc[i][j] = Dot::dot(acc[i][j], av, bv[j]);
    }
  }
}

template <class Dot, int GROUP, int GROUPS, int NV>
SGL_INLINE void multiply_packed(const float* a, size_t group_stride, const float* b, int depth,
                                F (&acc)[GROUP * GROUPS][NV]) {
#pragma GCC unroll 2
  for (int k = 0; k < depth; ++k) {
    F bv[NV];
    SGL_UNROLL for (int j = 0; j < NV; ++j) bv[j] = load<F>(b + (static_cast<size_t>(k) * NV + j) * kLanes);
    SGL_UNROLL for (int i = 0; i < GROUP * GROUPS; ++i) {
      const F av = splat(a[(i / GROUP) * group_stride + static_cast<size_t>(k) * GROUP + i % GROUP]);
      SGL_UNROLL for (int j = 0; j < NV; ++j) acc[i][j] = add_weighted<Dot>(acc[i][j], av, bv[j]);
    }
  }
}

// Sets the panel's reference from its first tile; a lane that has seen no score yet keeps 0.
template <int NV>
SGL_INLINE void start_panel(Panel& panel) {
  I far{};
  SGL_UNROLL for (int j = 0; j < NV; ++j) {
    panel.reference[j] = panel.highest[j] > splat(kMinusInf) ? panel.highest[j] : F{};
    far |= (panel.reference[j] > splat(kFarScore)) | (panel.reference[j] < splat(-kFarScore));
  }
  panel.far = any(far);
  panel.fresh = false;
}

// A score's exponent relative to a reference that may be far: no intermediate overflows that the result does not.
// Careful ones stay finite, so that a score as low as float32 goes is not taken for a hidden key.
template <class Dot>
SGL_INLINE F far_exponent(F score, F reference) {
  const F t = score - reference;
  if constexpr (!Dot::kCareful) return t + t;
  const F low = max(splat(kLowestExponent), t);
  return score == splat(kMinusInf) ? score : low + low - splat(kCarefulShift);
}

template <class Dot, int NV>
SGL_INLINE void emit(const F (&t)[kKeyRows<NV>][NV], Panel& panel, float* p) {
  SGL_UNROLL for (int j = 0; j < NV; ++j) {
    F sum{};
    SGL_UNROLL for (int i = 0; i < kKeyRows<NV>; i += Dot::kUnit) {
      F weight;
      if constexpr (Dot::kUnit == 1) {
        weight = weight_of<Dot>(t[i][j]);
        sum += weight;
      } else {
        const F a = exp2<Dot::kDegree>(t[i][j]), b = exp2<Dot::kDegree>(t[i + 1][j]);
        weight = Dot::pair(a, b);
        sum += a + b;  // before rounding: lse keeps float accuracy, the output is no worse
      }
      store(p + (static_cast<size_t>(i / Dot::kUnit) * NV + j) * kLanes, weight);
    }
    panel.sum[j] += sum;
  }
}

// What a tile adds to its scores: nothing; nothing, and only the first keys count; a bias for each key, or for each
// key and lane.
enum class Tile { whole, partial, key_bias, lane_bias };

// A score and its bias. -inf hides NaN and infinite scores too; no other sum is -inf.
SGL_INLINE F biased(F s, F bias) {
#if defined(__AVX512F__)  // two instructions; gcc 12 makes three of the other form
  const __mmask16 seen = _mm512_cmp_ps_mask(bias, splat(kMinusInf), _CMP_NEQ_UQ);
  return _mm512_mask_max_ps(bias, seen, splat(kLowest), s + bias);
#else
  return bias == splat(kMinusInf) ? bias : max(splat(kLowest), s + bias);
#endif
}

// One tile of keys inside all bounds: scores never leave the registers. `bias`: of the tile's first key; -inf hides.
template <class Dot, int NV, Tile kTile>
__attribute__((noinline)) void score_tile(const float* k, size_t stride, const float* q, int depth, float scale,
                                          int keys, const float* bias, Panel& panel, float* p) {
  constexpr int ROWS = kKeyRows<NV>;
  F acc[ROWS][NV];
  SGL_UNROLL for (int i = 0; i < ROWS; ++i) SGL_UNROLL for (int j = 0; j < NV; ++j) acc[i][j] = F{};
  multiply_rows<Dot, ROWS, NV>(k, stride, q, depth, acc);
  const F s = splat(scale);
  // Already here: a hidden score is -inf whatever it was, times 0 too.
  constexpr bool kScaled = kTile != Tile::whole || Dot::kCareful;
  if constexpr (kScaled) {
    const F hidden = splat(kMinusInf);
    SGL_UNROLL for (int i = 0; i < ROWS; ++i) {
      SGL_UNROLL for (int j = 0; j < NV; ++j) {
        if constexpr (kTile == Tile::partial || kTile == Tile::whole) {
          acc[i][j] = kTile == Tile::whole || i < keys ? saturated<Dot>(acc[i][j] * s) : hidden;
        } else {
          const F b = kTile == Tile::key_bias ? splat(bias[i]) : load<F>(bias + (i * NV + j) * kLanes);
          acc[i][j] = biased(acc[i][j] * s, b);
        }
      }
    }
  }
  SGL_UNROLL for (int j = 0; j < NV; ++j) {
    F m = acc[0][j];
    SGL_UNROLL for (int i = 1; i < ROWS; ++i) m = max(m, acc[i][j]);
    panel.highest[j] = max(panel.highest[j], kScaled ? m : m * s);
  }
  if (panel.fresh) start_panel<NV>(panel);
  if (Dot::kCareful || __builtin_expect(panel.far, 0)) {
    SGL_UNROLL for (int j = 0; j < NV; ++j) {
      SGL_UNROLL for (int i = 0; i < ROWS; ++i) {
        const F reference = panel.reference[j];
        const F exact = far_exponent<Dot>(kScaled ? acc[i][j] : rounded(acc[i][j] * s), reference);
        // Lanes that are not far get the same bits as without a far neighbour.
        const I far = (reference > splat(kFarScore)) | (reference < splat(-kFarScore));
        acc[i][j] = kScaled || Dot::kCareful ? exact : far ? exact : acc[i][j] * (s + s) - (reference + reference);
      }
    }
  } else {
    const F twice = kScaled ? splat(2.0f) : s + s;
    SGL_UNROLL for (int j = 0; j < NV; ++j) {
      const F reference = panel.reference[j] + panel.reference[j];
      SGL_UNROLL for (int i = 0; i < ROWS; ++i) acc[i][j] = acc[i][j] * twice - reference;
    }
  }
  emit<Dot, NV>(acc, panel, p);
}

// Bias, and bounds where `bounded`, on one vector of scores: key `row` of the block, vector j of the panel.
template <int NV>
SGL_INLINE F rule_score(F s, const ScoreRule& rule, int row, int j, const Panel& panel, bool bounded) {
  const F hidden = splat(kMinusInf);
  if (rule.key_bias != nullptr) {
    s = biased(s, splat(rule.key_bias[row]));
  }
  if (rule.lane_bias != nullptr) {
    s = biased(s, load<F>(rule.lane_bias + (static_cast<size_t>(row) * NV + j) * kLanes));
  }
  if (!bounded) return s;
  const int32_t key = rule.key0 + row;
  const I seen = (panel.position[j] + rule.right >= key) & (panel.position[j] - rule.left <= key);
  return seen ? s : hidden;
}

// One tile with softcap, bias or bounds; of the first `keys` keys, the rest being hidden.
template <class Dot, int NV>
__attribute__((noinline)) void score_tile_ruled(const float* k, size_t stride, const float* q, int depth,
                                                const ScoreRule& rule, int row0, int keys, bool bounded, Panel& panel,
                                                float* p) {
  constexpr int ROWS = kKeyRows<NV>;
  F tile[ROWS][NV];
  {
    F acc[ROWS][NV];
    SGL_UNROLL for (int i = 0; i < ROWS; ++i) SGL_UNROLL for (int j = 0; j < NV; ++j) acc[i][j] = F{};
    multiply_rows<Dot, ROWS, NV>(k, stride, q, depth, acc);
    SGL_UNROLL for (int i = 0; i < ROWS; ++i) SGL_UNROLL for (int j = 0; j < NV; ++j) tile[i][j] = acc[i][j];
  }
  for (int i = 0; i < ROWS; ++i) {  // not unrolled: the tile is in memory here, and this code is long
    for (int j = 0; j < NV; ++j) {
      if (i >= keys) {
        tile[i][j] = splat(kMinusInf);
        continue;
      }
      F s = tile[i][j] * rule.scale;
      s = rule.cap != 0 ? tanh(s) * rule.cap : saturated<Dot>(s);
      s = rule_score<NV>(s, rule, row0 + i, j, panel, bounded);
      panel.highest[j] = max(panel.highest[j], s);
      tile[i][j] = s;
    }
  }
  if (panel.fresh) start_panel<NV>(panel);
  for (int i = 0; i < ROWS; ++i) {
    for (int j = 0; j < NV; ++j) {
      const F reference = panel.reference[j];
      tile[i][j] = Dot::kCareful || panel.far ? far_exponent<Dot>(tile[i][j], reference)
                                              : tile[i][j] * 2.0f - (reference + reference);
    }
  }
  emit<Dot, NV>(tile, panel, p);
}

// What becomes of the products of earlier blocks: there are none (and out is not set), they stay, they are multiplied.
enum class Earlier { none, kept, decayed };

// O^T[channels][NV] = O^T * decay + V^T P^T. The products of a block are summed by themselves: one chain over all 4096
// keys had an error of 1.5e-6 in float32, where torch's block by block has 4.6e-7.
template <class Dot, int GROUP, int GROUPS, int NV>
__attribute__((noinline)) void value_tile(const float* v, size_t group_stride, const float* p, int depth, float* out,
                                          Earlier earlier, const F* decay) {
  constexpr int ROWS = GROUP * GROUPS;
  F acc[ROWS][NV];
  SGL_UNROLL for (int i = 0; i < ROWS; ++i) { SGL_UNROLL for (int j = 0; j < NV; ++j) acc[i][j] = F{}; }
  multiply_packed<Dot, GROUP, GROUPS, NV>(v, group_stride, p, depth, acc);
  SGL_UNROLL for (int i = 0; i < ROWS; ++i) {
    SGL_UNROLL for (int j = 0; j < NV; ++j) {
      float* o = out + (i * NV + j) * kLanes;
      if (earlier == Earlier::none) {
        store(o, acc[i][j]);
      } else {
        const F old = load<F>(o);
        store(o, acc[i][j] + (earlier == Earlier::kept ? old : old * decay[j]));
      }
    }
  }
}

// Channels in the group that starts with `rest` channels (even) to go: 6, or 4 and 2 at the end (8 is 4 + 4).
SGL_INLINE int channel_group(int rest) { return rest >= kChannelRows && rest != 8 ? kChannelRows : rest >= 4 ? 4 : 2; }

template <class Dot, int NV>
void accumulate_values(const float* v, size_t block_units, int unit0, int units, const float* p, float* out,
                       int channels, Earlier earlier, const F* decay) {
  // With one or two vectors, two groups together keep enough chains in flight (16 registers hold one).
  constexpr bool kPairs = kManyRegisters ? NV <= 2 : NV == 1;
  for (int c = 0; c < channels;) {
    const int group = channel_group(channels - c);
    const float* vc = v + static_cast<size_t>(c) * block_units + static_cast<size_t>(unit0) * group;
    float* oc = out + static_cast<size_t>(c) * NV * kLanes;
    if (kPairs && group == 6 && channel_group(channels - c - 6) == 6 && channels - c >= 12) {
      value_tile<Dot, 6, 2, NV>(vc, 6 * block_units, p, units, oc, earlier, decay);
      c += 12;
      continue;
    }
    if (group == 6) {
      value_tile<Dot, 6, 1, NV>(vc, 0, p, units, oc, earlier, decay);
    } else if (group == 4) {
      value_tile<Dot, 4, 1, NV>(vc, 0, p, units, oc, earlier, decay);
    } else {
      value_tile<Dot, 2, 1, NV>(vc, 0, p, units, oc, earlier, decay);
    }
    c += group;
  }
}

}  // namespace
}  // namespace sgl_kernels::attention
