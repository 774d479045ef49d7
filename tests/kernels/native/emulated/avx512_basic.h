// Types, the two ways to write an operation (by lanes, by parts of a real register's width), loads, stores, casts.
#pragma once

#include <stdint.h>

typedef float __m512 __attribute__((vector_size(64), may_alias));
typedef double __m512d __attribute__((vector_size(64), may_alias));
typedef long long __m512i __attribute__((vector_size(64), may_alias));
typedef short __m512bh __attribute__((vector_size(64), may_alias));
typedef short __m256bh __attribute__((vector_size(32), may_alias));
typedef unsigned char __mmask8;
typedef unsigned short __mmask16;
typedef unsigned int __mmask32;
typedef unsigned long long __mmask64;

#define SGL_EMULATED static inline __attribute__((always_inline, unused))

namespace emulated {

template <class V, class T>
struct Lanes {
  static constexpr int count = sizeof(V) / sizeof(T);
  T at[count];
};

template <class T, class V>
SGL_EMULATED Lanes<V, T> lanes_of(V v) {
  Lanes<V, T> lanes;
  __builtin_memcpy(lanes.at, &v, sizeof v);
  return lanes;
}

// V whose lane i of type T is fn(i).
template <class T, class V, class Fn>
SGL_EMULATED V by_lanes(Fn fn) {
  T at[sizeof(V) / sizeof(T)];
  for (unsigned i = 0; i < sizeof(V) / sizeof(T); ++i) at[i] = static_cast<T>(fn(i));
  V v;
  __builtin_memcpy(&v, at, sizeof v);
  return v;
}

// fn on each part of a, and of b and c where they are given.
template <class Part, class V, class Fn>
SGL_EMULATED V by_parts(V a, Fn fn) {
  Part x[sizeof(V) / sizeof(Part)];
  __builtin_memcpy(x, &a, sizeof a);
#pragma GCC unroll 4
  for (Part& part : x) part = fn(part);
  __builtin_memcpy(&a, x, sizeof a);
  return a;
}
template <class Part, class V, class Fn>
SGL_EMULATED V by_parts(V a, V b, Fn fn) {
  constexpr int count = sizeof(V) / sizeof(Part);
  Part x[count], y[count];
  __builtin_memcpy(x, &a, sizeof a);
  __builtin_memcpy(y, &b, sizeof b);
#pragma GCC unroll 4
  for (int i = 0; i < count; ++i) x[i] = fn(x[i], y[i]);
  __builtin_memcpy(&a, x, sizeof a);
  return a;
}

template <class V>
SGL_EMULATED V load(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
SGL_EMULATED V load_aligned(const void* p) {  // the instruction faults
  if (reinterpret_cast<uintptr_t>(p) % sizeof(V) != 0) __builtin_trap();
  return load<V>(p);
}

template <class V>
SGL_EMULATED void store_aligned(void* p, V v) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(V) != 0) __builtin_trap();
  __builtin_memcpy(p, &v, sizeof v);
}

// Lanes outside the mask are zero, and their memory is not touched.
template <class T, class V>
SGL_EMULATED V load_masked(uint64_t mask, const void* p) {
  return by_lanes<T, V>([=](unsigned i) {
    T x = 0;
    if (mask >> i & 1) __builtin_memcpy(&x, static_cast<const char*>(p) + i * sizeof(T), sizeof(T));
    return x;
  });
}

template <class T, class V>
SGL_EMULATED void store_masked(void* p, uint64_t mask, V v) {
  const auto lanes = lanes_of<T>(v);
  for (unsigned i = 0; i < sizeof(V) / sizeof(T); ++i) {
    if (mask >> i & 1) __builtin_memcpy(static_cast<char*>(p) + i * sizeof(T), &lanes.at[i], sizeof(T));
  }
}

// a where the mask has a one, b elsewhere.
template <class T, class V>
SGL_EMULATED V choose(uint64_t mask, V a, V b) {
  const auto x = lanes_of<T>(a), y = lanes_of<T>(b);
  return by_lanes<T, V>([&](unsigned i) { return mask >> i & 1 ? x.at[i] : y.at[i]; });
}

// What an instruction leaves undefined: a NaN as floats, nothing round as integers.
template <class V>
SGL_EMULATED V rubbish() {
  return by_lanes<uint32_t, V>([](unsigned i) { return 0xffabcd01u + i; });
}

}  // namespace emulated

// ---- whole registers --------------------------------------------------------------------------------------------

SGL_EMULATED __m512 _mm512_undefined_ps() { return emulated::rubbish<__m512>(); }
SGL_EMULATED __m512 _mm512_setzero_ps() { return __m512{}; }
SGL_EMULATED __m512i _mm512_setzero_si512() { return __m512i{}; }
SGL_EMULATED __m512 _mm512_set1_ps(float x) { return __m512{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
SGL_EMULATED __m512i _mm512_set1_epi32(int x) {
  return emulated::by_lanes<int32_t, __m512i>([=](unsigned) { return x; });
}
SGL_EMULATED __m512i _mm512_set1_epi16(short x) {
  return emulated::by_lanes<int16_t, __m512i>([=](unsigned) { return x; });
}
SGL_EMULATED __m512i _mm512_set1_epi8(char x) {
  return emulated::by_lanes<int8_t, __m512i>([=](unsigned) { return x; });
}
template <class... X>
SGL_EMULATED __m512 _mm512_setr_ps(X... x) {
  static_assert(sizeof...(X) == 16);
  return __m512{static_cast<float>(x)...};
}
template <class... X>
SGL_EMULATED __m512i _mm512_setr_epi32(X... x) {
  static_assert(sizeof...(X) == 16);
  typedef int32_t I __attribute__((vector_size(64)));
  return reinterpret_cast<__m512i>(I{static_cast<int32_t>(x)...});
}

SGL_EMULATED __m512 _mm512_loadu_ps(const void* p) { return emulated::load<__m512>(p); }
SGL_EMULATED __m512i _mm512_loadu_si512(const void* p) { return emulated::load<__m512i>(p); }
SGL_EMULATED __m512 _mm512_load_ps(const void* p) { return emulated::load_aligned<__m512>(p); }
SGL_EMULATED __m512i _mm512_load_si512(const void* p) { return emulated::load_aligned<__m512i>(p); }
SGL_EMULATED void _mm512_storeu_ps(void* p, __m512 v) { __builtin_memcpy(p, &v, sizeof v); }
SGL_EMULATED void _mm512_storeu_si512(void* p, __m512i v) { __builtin_memcpy(p, &v, sizeof v); }
SGL_EMULATED void _mm512_store_ps(void* p, __m512 v) { emulated::store_aligned(p, v); }
SGL_EMULATED void _mm512_store_si512(void* p, __m512i v) { emulated::store_aligned(p, v); }
SGL_EMULATED void _mm512_stream_si512(__m512i* p, __m512i v) { emulated::store_aligned(p, v); }

SGL_EMULATED __m512 _mm512_maskz_loadu_ps(__mmask16 k, const void* p) {
  return emulated::load_masked<uint32_t, __m512>(k, p);
}
SGL_EMULATED __m512i _mm512_maskz_loadu_epi16(__mmask32 k, const void* p) {
  return emulated::load_masked<uint16_t, __m512i>(k, p);
}
SGL_EMULATED __m256i _mm256_maskz_loadu_epi16(__mmask16 k, const void* p) {
  return emulated::load_masked<uint16_t, __m256i>(k, p);
}
SGL_EMULATED void _mm512_mask_storeu_ps(void* p, __mmask16 k, __m512 v) { emulated::store_masked<uint32_t>(p, k, v); }
SGL_EMULATED void _mm512_mask_storeu_epi16(void* p, __mmask32 k, __m512i v) {
  emulated::store_masked<uint16_t>(p, k, v);
}
SGL_EMULATED void _mm256_mask_storeu_epi16(void* p, __mmask16 k, __m256i v) {
  emulated::store_masked<uint16_t>(p, k, v);
}

SGL_EMULATED __m512 _mm512_castsi512_ps(__m512i v) { return reinterpret_cast<__m512>(v); }
SGL_EMULATED __m512i _mm512_castps_si512(__m512 v) { return reinterpret_cast<__m512i>(v); }
SGL_EMULATED __m512d _mm512_castps_pd(__m512 v) { return reinterpret_cast<__m512d>(v); }
SGL_EMULATED __m512 _mm512_castpd_ps(__m512d v) { return reinterpret_cast<__m512>(v); }
SGL_EMULATED float _mm512_cvtss_f32(__m512 v) { return v[0]; }
SGL_EMULATED int _mm512_cvtsi512_si32(__m512i v) { return static_cast<int>(v[0]); }
SGL_EMULATED __m256i _mm512_castsi512_si256(__m512i v) { return emulated::load<__m256i>(&v); }
SGL_EMULATED __m512i _mm512_castsi256_si512(__m256i low) {
  __m512i v = emulated::rubbish<__m512i>();
  __builtin_memcpy(&v, &low, sizeof low);
  return v;
}
SGL_EMULATED __m256i _mm512_extracti64x4_epi64(__m512i v, int half) {
  return emulated::load<__m256i>(reinterpret_cast<const char*>(&v) + 32 * (half & 1));
}
SGL_EMULATED __m512i _mm512_inserti64x4(__m512i v, __m256i part, int half) {
  __builtin_memcpy(reinterpret_cast<char*>(&v) + 32 * (half & 1), &part, sizeof part);
  return v;
}
