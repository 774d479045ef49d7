// Group norm: moments of runs of elements, and the affine map with activation, per channel or channels-last.
#pragma once

#include "kernel_elementwise.h"
#include "kernel_norm.h"

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
    const double correction = total[0].first / count;
    result = {centre[0] + correction, total[0].squares - count * correction * correction};
  });
  return result;
}

template <Activation kind, class T>
static void channel_as(const ChannelArgs& args) {
  const T* x = reinterpret_cast<const T*>(args.x);
  T* out = reinterpret_cast<T*>(args.out);
  const bool past_caches = args.stream;
  const F mean = splat(args.mean), gain = splat(args.gain), shift = splat(args.shift);
  const auto get = [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const Pair v = load(x + i, count);
    return Pair{fma(v.a - mean, gain, shift), fma(v.b - mean, gain, shift)};
  };
  activate_blocks<kind, T>(args.count, get, [&](int64_t i, Pair v, int64_t count) __attribute__((always_inline)) {
    put(out + i, v, count, past_caches);
  });
  if (past_caches) {
    finish_streaming();
  }
}

static void channel(const ChannelArgs& args) {
  by_dtype(args.dtype, [&](auto* type) {
    using T = SGL_TYPE_OF(type);
    if (args.activation == Activation::silu) {
      channel_as<Activation::silu, T>(args);
    } else {
      channel_as<Activation::none, T>(args);
    }
  });
}

// Per channel the sum over the rows of x, or of (x - about)^2, in block order.
template <bool squared, class T>
SGL_INLINE void channel_sums(const LastMomentsArgs& args, const float* about, float* sums) {
  for_blocks(args.channels, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const Pair centre = squared ? load(about + i) : Pair{};
    Pair total[4] = {};
    const auto add = [&](Pair& into, int64_t r) __attribute__((always_inline)) {
      const Pair v = load(row<T>(args.x, args.x_step, r) + i, count);
      const Pair d = {v.a - centre.a, v.b - centre.b};
      into = squared ? Pair{fma(d.a, d.a, into.a), fma(d.b, d.b, into.b)} : Pair{into.a + v.a, into.b + v.b};
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

template <class T>
static void last_moments_as(const LastMomentsArgs& args) {
  float* sums = args.scratch;
  float* mean = args.scratch + padded(args.channels);
  const int64_t width = args.channels / args.groups;
  const auto group_sum = [&](int64_t group) {
    double total = 0.0;
    for (int64_t c = group * width; c < (group + 1) * width; ++c) {
      total += sums[position<T>(c)];
    }
    return total;
  };
  for (int64_t c = 0; c < padded(args.channels); ++c) {
    mean[c] = 0.0f;
  }
  channel_sums<false, T>(args, mean, sums);
  for (int64_t group = 0; group < args.groups; ++group) {
    const float centre = static_cast<float>(group_sum(group) / static_cast<double>(width * args.rows));
    args.out[group].mean = centre;
    for (int64_t c = group * width; c < (group + 1) * width; ++c) {
      mean[position<T>(c)] = centre;
    }
  }
  channel_sums<true, T>(args, mean, sums);
  for (int64_t group = 0; group < args.groups; ++group) {
    args.out[group].squares = group_sum(group);
  }
}

static void last_moments(const LastMomentsArgs& args) {
  by_dtype(args.dtype, [&](auto* type) { last_moments_as<SGL_TYPE_OF(type)>(args); });
}

template <Activation kind, class T>
static void last_apply_as(const LastApplyArgs& args) {
  const bool past_caches = args.stream;
  const float *means = args.mean, *gains = args.gain, *shifts = args.shift;
  for (int64_t r = 0; r < args.rows; ++r) {
    const T* x = row<T>(args.x, args.x_step, r);
    T* out = row<T>(args.out, args.out_step, r);
    for_blocks(args.channels, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      const Pair v = load(x + i, count), mean = load(means + i);
      const Pair gain = load(gains + i), shift = load(shifts + i);
      const Pair y = {fma(v.a - mean.a, gain.a, shift.a), fma(v.b - mean.b, gain.b, shift.b)};
      put(out + i, activated<kind, T>(y), count, past_caches);
    });
  }
  if (past_caches) {
    finish_streaming();
  }
}

static void last_apply(const LastApplyArgs& args) {
  by_dtype(args.dtype, [&](auto* type) {
    using T = SGL_TYPE_OF(type);
    if (args.activation == Activation::silu) {
      last_apply_as<Activation::silu, T>(args);
    } else {
      last_apply_as<Activation::none, T>(args);
    }
  });
}

}  // namespace SGL_ISA
}  // namespace sgl_kernels
