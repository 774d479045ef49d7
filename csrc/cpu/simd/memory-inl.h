// One register from memory and back: any alignment, any declared type behind the pointer.
#pragma once

#include "simd/lanes-inl.h"

namespace sgl_kernels {
namespace SGL_ISA {

// All bytes of V at p. (Vector by vector: gcc 12 keeps an aggregate that memcpy filled on the stack, two dead stores.)
template <class V>
SGL_INLINE V load(const void* p) {
  V x;
  __builtin_memcpy(&x, p, sizeof(V));
  return x;
}

// All bytes of x to p.
template <class V>
SGL_INLINE void store(void* p, V x) {
  __builtin_memcpy(p, &x, sizeof(V));
}

// The first n of kLanes elements of 32 or 16 bits, 0 <= n <= kLanes; the rest are 0 and their memory is not touched.
template <class V>
SGL_INLINE V load_some(const void* p, int n) {
  constexpr size_t kItem = sizeof(V) / kLanes;
  static_assert(kItem == 4 || kItem == 2);
#if defined(__AVX512F__)
  const __mmask16 m = static_cast<__mmask16>((1u << n) - 1);
  if constexpr (kItem == 4) {
    return (V)_mm512_maskz_loadu_ps(m, p);
  } else {
    return (V)_mm256_maskz_loadu_epi16(m, p);
  }
#else
#if defined(__AVX2__)
  if constexpr (kItem == 4) {
    return (V)_mm256_maskload_ps(reinterpret_cast<const float*>(p), reinterpret_cast<__m256i>(lane_index() < n));
  }
#endif
  V x{};
  __builtin_memcpy(&x, p, static_cast<size_t>(n) * kItem);
  return x;
#endif
}

// The first n of kLanes elements, 0 <= n <= kLanes; nothing else is written.
template <class V>
SGL_INLINE void store_some(void* p, V x, int n) {
  if (n == kLanes) return store(p, x);
  __builtin_memcpy(p, &x, static_cast<size_t>(n) * (sizeof(V) / kLanes));
}

// The first bytes of x, up to all.
SGL_INLINE void store_bytes(char* to, F x, int bytes) {
  if (bytes == 4 * kLanes) return store(to, x);
#if defined(__AVX512F__)
  if (bytes % 4 == 0) return _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << (bytes / 4)) - 1), x);
#endif
  __builtin_memcpy(to, &x, static_cast<size_t>(bytes));
}

// All bytes of x past the caches; p is aligned to the register. finish_streaming comes after the last one.
SGL_INLINE void stream(void* p, U x) {
#if defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(p), (__m512i)x);
#elif defined(__AVX2__)
  _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)x);
#elif defined(__x86_64__)
  _mm_stream_si128(static_cast<__m128i*>(p), (__m128i)x);
#else
  store(p, x);
#endif
}

SGL_INLINE void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace SGL_ISA
}  // namespace sgl_kernels
