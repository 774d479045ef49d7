// Elements of attention's types to registers of fp32 and back. Everything of this family is in an unnamed namespace, so
// that each instruction set keeps its own copy.
#pragma once

#include "attention/args.h"
#include "simd/block-inl.h"
#include "simd/exp-inl.h"
#include "simd/transpose-inl.h"

namespace sgl_kernels::attention {
namespace {

using namespace ::sgl_kernels::SGL_ISA;

template <Type kType>
SGL_INLINE F load_as_float(const char* p) {
  if constexpr (kType == Type::f32) return load<F>(p);
  if constexpr (kType == Type::bf16) return from_bf16(load<H>(p));
  if constexpr (kType == Type::f16) return from_f16(load<H>(p));
}

// The first n <= kLanes; the rest are 0.
template <Type kType>
SGL_INLINE F load_as_float(const char* p, int n) {
  if constexpr (kType == Type::f32) return load_some<F>(p, n);
  const H h = load_some<H>(p, n);
  return kType == Type::bf16 ? from_bf16(h) : from_f16(h);
}

SGL_INLINE void store_from_float(char* p, F x, Type type, int n) {
  if (type == Type::f32) return store_some(p, x, n);
  store_some(p, type == Type::bf16 ? to_bf16(x) : to_f16(x), n);
}

}  // namespace
}  // namespace sgl_kernels::attention
