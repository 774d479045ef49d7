// Group norm: moments of runs of elements, and the affine map with activation, per channel or channels-last.
#pragma once

#include "rowwise/elementwise-inl.h"
#include "rowwise/norm-inl.h"

namespace sgl_kernels {
namespace SGL_ISA {

static Moments moments(const MomentsArgs& args) {
  Moments result = {};
  by_dtype(args.dtype, [&](auto* type) {
    using T = SGL_TYPE_OF(type);
    const T* x[1] = {reinterpret_cast<const T*>(args.x)};
    const float count = static_cast<float>(args.count);
    float centre[1] = {0.0f};
    Totals total[1];
    row_sums<Sum::values, T>(x, args.count, centre, nullptr, total);
    centre[0] = total[0].first / count;
    row_sums<kDeviations<T>, T>(x, args.count, centre, nullptr, total);
    if (__builtin_expect(!is_ordinary(total[0].squares / count + args.eps), 0)) {
      result = careful_moments(x[0], args.count);
      return;
    }
    const double correction = total[0].first / count;
    result = {centre[0] + correction, total[0].squares - count * correction * correction};
  });
  return result;
}

template <bool lifted>
SGL_INLINE F mapped(F v, F mean, F gain, F shift, F lift) {
  return fma(lifted ? v * lift - mean * lift : v - mean, gain, shift);
}

template <Activation kind, class T, bool lifted>
static void channel_as(const ChannelArgs& args) {
  const T* x = reinterpret_cast<const T*>(args.x);
  T* out = reinterpret_cast<T*>(args.out);
  const bool past_caches = args.stream;
  const F mean = splat(args.mean), gain = splat(args.gain), shift = splat(args.shift), lift = splat(args.lift);
  const auto get = [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const Pair v = load_block(x + i, count);
    return Pair{mapped<lifted>(v.a, mean, gain, shift, lift), mapped<lifted>(v.b, mean, gain, shift, lift)};
  };
  activate_blocks<kind, T>(args.count, get, [&](int64_t i, Pair v, int64_t count) __attribute__((always_inline)) {
    store_block(out + i, v, count, past_caches);
  });
  if (past_caches) {
    finish_streaming();
  }
}

static void channel(const ChannelArgs& args) {
  by_dtype(args.dtype, [&](auto* type) {
    using T = SGL_TYPE_OF(type);
    const bool lifted = args.lift != 1.0f;
    if (args.activation == Activation::silu) {
      lifted ? channel_as<Activation::silu, T, true>(args) : channel_as<Activation::silu, T, false>(args);
    } else {
      lifted ? channel_as<Activation::none, T, true>(args) : channel_as<Activation::none, T, false>(args);
    }
  });
}

// fp32 sums are of distances from the first row: of 256 elements around 1e4 the plain sum is off by a whole deviation.
template <class T>
constexpr bool kFromFirstRow = !kHalf<T>;

// Per channel the sum over the rows of x - about, or of (x - about)^2, in block order.
template <bool squared, class T>
SGL_INLINE void channel_sums(const LastMomentsArgs& args, const float* about, float* sums) {
  constexpr bool centred = squared || kFromFirstRow<T>;
  for_blocks(args.channels, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const Pair centre = centred ? load_block(about + i) : Pair{};
    Pair total[4] = {};
    const auto add = [&](Pair& into, int64_t r) __attribute__((always_inline)) {
      const Pair v = load_block(row<T>(args.x, args.x_step, r) + i, count);
      const Pair d = centred ? Pair{v.a - centre.a, v.b - centre.b} : v;
      into = squared ? Pair{fma(d.a, d.a, into.a), fma(d.b, d.b, into.b)} : Pair{into.a + d.a, into.b + d.b};
    };
    int64_t r = 0;
    for (; r + 4 <= args.rows; r += 4) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        add(total[j], r + j);
      }
    }
    for (; r < args.rows; ++r) {
      add(total[0], r);
    }
    put_prepared(sums + i, {(total[0].a + total[1].a) + (total[2].a + total[3].a),
                            (total[0].b + total[1].b) + (total[2].b + total[3].b)});
  });
}

// One group in doubles, where its squares are not ordinary.
template <class T>
__attribute__((noinline)) static Moments careful_group(const LastMomentsArgs& args, int64_t group) {
  const int64_t width = args.channels / args.groups;
  double mean = 0.0, squares = 0.0, count = 0.0;
  for (int64_t r = 0; r < args.rows; ++r) {
    const Moments part = careful_moments(row<T>(args.x, args.x_step, r) + group * width, width);
    const double all = count + static_cast<double>(width), delta = part.mean - mean;
    squares += part.squares + delta * delta * (count * static_cast<double>(width) / all);
    mean += delta * (static_cast<double>(width) / all);
    count = all;
  }
  return {mean, squares};
}

template <class T>
static void last_moments_as(const LastMomentsArgs& args) {
  float* sums = args.scratch;
  float* mean = args.scratch + padded(args.channels);
  const int64_t width = args.channels / args.groups;
  const double count = static_cast<double>(width * args.rows);
  const auto group_sum = [&](int64_t group, const float* of) {
    double total = 0.0;
    for (int64_t c = group * width; c < (group + 1) * width; ++c) {
      total += of[position<T>(c)];
    }
    return total;
  };
  if constexpr (kFromFirstRow<T>) {
    for_blocks(args.channels, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      put_prepared(mean + i, load_block(row<T>(args.x, args.x_step, 0) + i, n));
    });
  }
  channel_sums<false, T>(args, mean, sums);
  for (int64_t group = 0; group < args.groups; ++group) {
    const double first = kFromFirstRow<T> ? group_sum(group, mean) / static_cast<double>(width) : 0.0;
    args.out[group].mean = first + group_sum(group, sums) / count;
    for (int64_t c = group * width; c < (group + 1) * width; ++c) {
      mean[position<T>(c)] = static_cast<float>(args.out[group].mean);
    }
  }
  channel_sums<true, T>(args, mean, sums);
  for (int64_t group = 0; group < args.groups; ++group) {
    Moments& out = args.out[group];
    const double rounding = static_cast<float>(out.mean) - out.mean, squares = group_sum(group, sums);
    out.squares = squares - count * rounding * rounding;
    if (__builtin_expect(!is_ordinary(static_cast<float>(squares / count) + args.eps), 0)) {
      out = careful_group<T>(args, group);
    }
  }
}

static void last_moments(const LastMomentsArgs& args) {
  by_dtype(args.dtype, [&](auto* type) { last_moments_as<SGL_TYPE_OF(type)>(args); });
}

template <Activation kind, class T, bool lifted>
static void last_apply_as(const LastApplyArgs& args) {
  const bool past_caches = args.stream;
  const float *means = args.mean, *gains = args.gain, *shifts = args.shift, *lifts = args.lift;
  for (int64_t r = 0; r < args.rows; ++r) {
    const T* x = row<T>(args.x, args.x_step, r);
    T* out = row<T>(args.out, args.out_step, r);
    for_blocks(args.channels, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      const Pair v = load_block(x + i, count), mean = load_block(means + i);
      const Pair gain = load_block(gains + i), shift = load_block(shifts + i);
      const Pair lift = lifted ? load_block(lifts + i) : Pair{};
      const Pair y = {mapped<lifted>(v.a, mean.a, gain.a, shift.a, lift.a),
                      mapped<lifted>(v.b, mean.b, gain.b, shift.b, lift.b)};
      store_block(out + i, activated<kind, T>(y), count, past_caches);
    });
  }
  if (past_caches) {
    finish_streaming();
  }
}

static void last_apply(const LastApplyArgs& args) {
  by_dtype(args.dtype, [&](auto* type) {
    using T = SGL_TYPE_OF(type);
    const bool lifted = args.lift != nullptr;
    if (args.activation == Activation::silu) {
      lifted ? last_apply_as<Activation::silu, T, true>(args) : last_apply_as<Activation::silu, T, false>(args);
    } else {
      lifted ? last_apply_as<Activation::none, T, true>(args) : last_apply_as<Activation::none, T, false>(args);
    }
  });
}

}  // namespace SGL_ISA
}  // namespace sgl_kernels
