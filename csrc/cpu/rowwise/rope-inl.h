// Rotary position embedding of the heads of one token, after an RMS norm of each head where asked.
#pragma once

#include "rowwise/elementwise-inl.h"
#include "rowwise/norm-inl.h"

namespace sgl_kernels {
namespace SGL_ISA {

// Where the parts of a prepared gain begin: the rotary part (its second half apart when not interleaved), the rest.
struct GainParts {
  int64_t second, rest;
};

SGL_INLINE GainParts gain_parts(int64_t rotary, bool interleaved) {
  const int64_t half = padded(rotary / 2);
  return interleaved ? GainParts{0, padded(rotary)} : GainParts{half, 2 * half};
}

static void rope_gain(const RopeGainArgs& args) {
  const GainParts parts = gain_parts(args.rotary, args.interleaved);
  const bool split = args.order == Dtype::bf16;
  const auto span = [&](bool apart, int64_t begin, int64_t count, float* to) {
    if (apart) {
      prepare_span<true>(args.from, begin, count, to);
    } else {
      prepare_span<false>(args.from, begin, count, to);
    }
  };
  if (args.interleaved) {
    span(true, 0, args.rotary, args.to);
  } else {
    span(split, 0, args.rotary / 2, args.to);
    span(split, args.rotary / 2, args.rotary / 2, args.to + parts.second);
  }
  span(split, args.rotary, args.dim - args.rotary, args.to + parts.rest);
}

// The inverse of a row whose own is no float: `rest` of the elements lifted by 2^64, which is exact for them.
struct LiftedInverse {
  float rest;
};
constexpr float kLift = 0x1p64f;

SGL_INLINE Pair scaled(Pair v, float inverse, const float* gain) {
  const Pair g = load_block(gain);
  return {v.a * inverse * g.a, v.b * inverse * g.b};
}
SGL_INLINE Pair scaled(Pair v, LiftedInverse inverse, const float* gain) {
  return scaled({v.a * kLift, v.b * kLift}, inverse.rest, gain);
}

// Rotates (a, b) by the angle whose cosine and sine are given.
SGL_INLINE void turn(F& a, F& b, F cosine, F sine) {
  const F turned = fma(a, cosine, -(b * sine));
  b = fma(a, sine, b * cosine);
  a = turned;
}

template <bool normalised, class T, class Inverse>
SGL_INLINE void rotate_pairs(const T* x, T* out, const RopeArgs& args, Inverse inverse, bool past_caches) {
  const float *gain = args.gain, *cosines = args.cos, *sines = args.sin;
  for_blocks(args.rotary, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const Pair block = load_block(x + i, count);
    Pair v = kEvenOdd<T> ? block : even_odd(block);
    if constexpr (normalised) {
      v = scaled(v, inverse, gain + i);
    }
    turn(v.a, v.b, load<F>(cosines + i / 2), load<F>(sines + i / 2));
    store_block(out + i, kEvenOdd<T> ? v : sequential(v), count, past_caches);
  });
}

template <bool normalised, class T, class Inverse>
SGL_INLINE void rotate_halves(const T* x, T* out, const RopeArgs& args, Inverse inverse, bool past_caches) {
  const int64_t half = args.rotary / 2;
  const float *gain = args.gain, *cosines = args.cos, *sines = args.sin;
  const float* second_gain = gain + gain_parts(args.rotary, false).second;
  for_blocks(half, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    Pair low = load_block(x + i, count), high = load_block(x + half + i, count);
    if constexpr (normalised) {
      low = scaled(low, inverse, gain + i);
      high = scaled(high, inverse, second_gain + i);
    }
    const Pair cosine = load_block(cosines + i), sine = load_block(sines + i);
    turn(low.a, high.a, cosine.a, sine.a);
    turn(low.b, high.b, cosine.b, sine.b);
    store_block(out + i, low, count, past_caches);
    store_block(out + half + i, high, count, past_caches);
  });
}

// The channels after the rotary ones: normalised, or as they are.
template <bool normalised, class T, class Inverse>
SGL_INLINE void pass(const T* x, T* out, const RopeArgs& args, Inverse inverse, bool past_caches) {
  const float* gain = args.gain + gain_parts(args.rotary, args.interleaved).rest;
  for_blocks(args.dim - args.rotary, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const T* from = x + args.rotary + i;
    if constexpr (normalised) {
      store_block(out + args.rotary + i, scaled(load_block(from, count), inverse, gain + i), count, past_caches);
    } else if (count >= kBlock) {
      write_raw(out + args.rotary + i, read_raw(from));
    } else {
      write_raw(out + args.rotary + i, read_raw(from, count), count);
    }
  });
}

// The heads that are fetched while these are turned, two blocks of 4 on; heads lie one after another, so behind a
// token's last heads come those of the next.
constexpr int kHeadsAhead = 8;

template <bool interleaved, bool normalised, class T, class Inverse>
SGL_INLINE void rope_head(const T* x, const RopeArgs& args, int64_t head, Inverse inverse, bool past_caches) {
  T* out = row<T>(args.out, args.out_step, head);
  if constexpr (interleaved) {
    rotate_pairs<normalised>(x, out, args, inverse, past_caches);
  } else {
    rotate_halves<normalised>(x, out, args, inverse, past_caches);
  }
  if (args.rotary < args.dim) {
    pass<normalised>(x, out, args, inverse, past_caches);
  }
}

// Heads one of which is not ordinary, each by itself.
template <bool interleaved, class T>
__attribute__((noinline)) static void rope_carefully(const RopeArgs& args, int64_t head, int64_t heads,
                                                     bool past_caches) {
  for (int64_t h = head; h < head + heads; ++h) {
    const T* x[1] = {row<T>(args.x, args.x_step, h)};
    RowStatistics found[1];
    double mean, inverse = 0.0;
    if (statistics<Norm::rms>(x, args.dim, args.eps, nullptr, found)) {
      inverse = found[0].inverse;
    } else {
      inverse = careful_inverse(x[0], args.dim, args.eps, Norm::rms, &mean);
    }
    if (inverse > 0x1p100) {
      const LiftedInverse lifted = {static_cast<float>(inverse / kLift)};
      rope_head<interleaved, true>(x[0], args, h, lifted, past_caches);
    } else {
      rope_head<interleaved, true>(x[0], args, h, static_cast<float>(inverse), past_caches);
    }
  }
}

template <bool interleaved, bool normalised, class T, int heads>
SGL_INLINE void rope_block(const RopeArgs& args, int64_t head, bool past_caches) {
  const T* x[heads];
  RowStatistics row_statistics[heads];
  for (int h = 0; h < heads; ++h) {
    x[h] = row<T>(args.x, args.x_step, head + h);
    const char* ahead = reinterpret_cast<const char*>(row<T>(args.x, args.x_step, head + h + kHeadsAhead));
    for (int64_t at = 0; at < args.dim * static_cast<int64_t>(sizeof(T)); at += 64) {
      __builtin_prefetch(ahead + at);
    }
  }
  if constexpr (normalised) {
    if (__builtin_expect(!statistics<Norm::rms>(x, args.dim, args.eps, nullptr, row_statistics), 0)) {
      rope_carefully<interleaved, T>(args, head, heads, past_caches);
      return;
    }
  }
  for (int h = 0; h < heads; ++h) {
    rope_head<interleaved, normalised>(x[h], args, head + h, row_statistics[h].inverse, past_caches);
  }
}

template <bool interleaved, bool normalised, class T>
static void rope_heads(const RopeArgs& args) {
  // The parts of a head must each begin on a vector to be streamed.
  const int64_t part = args.rotary / (interleaved ? 1 : 2) * static_cast<int64_t>(sizeof(T));
  const bool past_caches = args.stream && part % 64 == 0;
  int64_t head = 0;
  for (; head + 4 <= args.heads; head += 4) {
    rope_block<interleaved, normalised, T, 4>(args, head, past_caches);
  }
  for (; head < args.heads; ++head) {
    rope_block<interleaved, normalised, T, 1>(args, head, past_caches);
  }
}

template <bool interleaved, class T>
SGL_INLINE void rope_as(const RopeArgs& args) {
  if (args.normalise) {
    rope_heads<interleaved, true, T>(args);
  } else {
    rope_heads<interleaved, false, T>(args);
  }
}

static void rope(const RopeArgs& args) {
  by_dtype(args.dtype, [&](auto* type) {
    using T = SGL_TYPE_OF(type);
    if (args.interleaved) {
      rope_as<true, T>(args);
    } else {
      rope_as<false, T>(args);
    }
  });
}

}  // namespace SGL_ISA
}  // namespace sgl_kernels
