// Modulation and activations: one read of each input, one write.
#pragma once

#include "rowwise/common-inl.h"
#include "simd/activation-inl.h"

namespace sgl_kernels {
namespace SGL_ISA {

template <Activation kind, class T, int n>
SGL_INLINE Many<n> activated(const Many<n>& v) {
  switch (kind) {
    case Activation::silu:
      return silu<T>(v);
    case Activation::gelu_tanh:
      return gelu_tanh<T>(v);
    case Activation::gelu_erf:
      return gelu_erf<T>(v);
    default:
      return v;
  }
}

template <Activation kind, class T>
SGL_INLINE Pair activated(Pair v) {
  const Many<2> result = activated<kind, T>(Many<2>{{v.a, v.b}});
  return {result.v[0], result.v[1]};
}

// f(i, count) for every block of a row, count being kBlock but for the last.
template <class Block>
SGL_INLINE void for_blocks(int64_t dim, Block f) {
  int64_t i = 0;
  for (; i + kBlock <= dim; i += kBlock) {
    f(i, kBlock);
  }
  if (i < dim) {
    f(i, dim - i);
  }
}

template <bool with_residual, bool shifted, class T>
static void modulate_rows(const ModulateArgs& args) {
  const float *gains = args.gain, *shifts = args.shift;  // locals: a store to out may alias args
  const bool past_caches = args.stream;
  for (int64_t r = 0; r < args.rows; ++r) {
    const T* x = row<T>(args.x, args.x_step, r);
    const T* residual = with_residual ? row<T>(args.residual, args.residual_step, r) : nullptr;
    T* out = row<T>(args.out, args.out_step, r);
    for_blocks(args.dim, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      const Pair v = load_block(x + i, count), gain = load_block(gains + i);
      Pair base = {};
      if constexpr (with_residual) {
        base = load_block(residual + i, count);
      } else if constexpr (shifted) {
        base = load_block(shifts + i);
      }
      const Pair result = with_residual || shifted ? Pair{fma(v.a, gain.a, base.a), fma(v.b, gain.b, base.b)}
                                                   : Pair{v.a * gain.a, v.b * gain.b};
      store_block(out + i, result, count, past_caches);
    });
  }
  if (args.stream) {
    finish_streaming();
  }
}

static void modulate(const ModulateArgs& args) {
  by_dtype(args.dtype, [&](auto* type) {
    using T = SGL_TYPE_OF(type);
    if (args.residual != nullptr) {
      modulate_rows<true, false, T>(args);
    } else if (args.shift != nullptr) {
      modulate_rows<false, true, T>(args);
    } else {
      modulate_rows<false, false, T>(args);
    }
  });
}

// Blocks whose activations are calculated in step: as many as registers hold.
template <class T>
constexpr int kInStep = kLanes < 16   ? 2
                        : kEvenOdd<T> ? 3
                                      : 4;
template <int n>
struct Count {
  static constexpr int value = n;
};

// store_block(i, v) of activation(get(i)) for every block i of a row; get and put are given how many elements remain.
template <Activation kind, class T, class Get, class Put>
SGL_INLINE void activate_blocks(int64_t dim, Get get, Put put_block) {
  const auto step = [&](auto blocks, int64_t begin, int64_t count) __attribute__((always_inline)) {
    constexpr int n = decltype(blocks)::value;
    Many<2 * n> v;
#pragma GCC unroll 8
    for (int block = 0; block < n; ++block) {
      const Pair x = get(begin + block * kBlock, count);
      v.v[2 * block] = x.a;
      v.v[2 * block + 1] = x.b;
    }
    v = activated<kind, T>(v);
#pragma GCC unroll 8
    for (int block = 0; block < n; ++block) {
      put_block(begin + block * kBlock, Pair{v.v[2 * block], v.v[2 * block + 1]}, count);
    }
  };
  int64_t i = 0;
  for (; i + kInStep<T> * kBlock <= dim; i += kInStep<T> * kBlock) {
    step(Count<kInStep<T>>{}, i, kBlock);
  }
  for (; i < dim; i += kBlock) {
    step(Count<1>{}, i, dim - i);
  }
}

// The halves of one tensor, row after row, are two streams that jump: the processor's own prefetch lost them, and
// silu_mul 4096x12288 took twice as long in bf16 as with the halves apart (Zen 5) until the next row was fetched here.
template <Activation kind, bool gated, class T>
static void activate_rows(const ActivateArgs& args) {
  const bool past_caches = args.stream;
  for (int64_t r = 0; r < args.rows; ++r) {
    const T* x = row<T>(args.x, args.x_step, r);
    const T* up = gated ? row<T>(args.up, args.up_step, r) : nullptr;
    T* out = row<T>(args.out, args.out_step, r);
    const Ahead<T> ahead = {x, up, args.x_step, args.up_step};
    const auto get = [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      ahead.fetch(1, i);
      return load_block(x + i, count);
    };
    activate_blocks<kind, T>(args.dim, get, [&](int64_t i, Pair v, int64_t count) __attribute__((always_inline)) {
      if constexpr (gated) {
        const Pair factor = load_block(up + i, count);
        v = {v.a * factor.a, v.b * factor.b};
      }
      store_block(out + i, v, count, past_caches);
    });
  }
  if (past_caches) {
    finish_streaming();
  }
}

template <Activation kind, class T>
SGL_INLINE void activate_as(const ActivateArgs& args) {
  if (args.up != nullptr) {
    activate_rows<kind, true, T>(args);
  } else {
    activate_rows<kind, false, T>(args);
  }
}

static void activate(const ActivateArgs& args) {
  by_dtype(args.dtype, [&](auto* type) {
    using T = SGL_TYPE_OF(type);
    switch (args.activation) {
      case Activation::silu:
        return activate_as<Activation::silu, T>(args);
      case Activation::gelu_tanh:
        return activate_as<Activation::gelu_tanh, T>(args);
      default:
        return activate_as<Activation::gelu_erf, T>(args);
    }
  });
}

}  // namespace SGL_ISA
}  // namespace sgl_kernels
