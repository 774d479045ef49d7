// The level that a file is compiled for: its namespace, its registers and the macros of every kernel.
//
// A kernel body includes simd/ and is compiled once per instruction set, each time in the namespace SGL_ISA, so no
// symbol of one level can replace a symbol of another. Nothing here includes a header with inline functions of the
// standard library, for the same reason. Arithmetic uses the compiler's vector types (+ - * / < on lanes), with
// intrinsics only where those have no word for it. Every function of simd/ is held against a scalar definition on every
// level (tests/kernels/native/check_simd*.cpp).
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // gcc 12's own _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AMX_TILE__)
#define SGL_ISA amx
#elif defined(__AVX512BF16__)
#define SGL_ISA avx512bf16
#elif defined(__AVX512VBMI__)
#define SGL_ISA avx512vbmi
#elif defined(__AVX512VNNI__)
#define SGL_ISA avx512vnni
#elif defined(__AVX512BW__)
#define SGL_ISA avx512
#elif defined(__AVX2__)
#define SGL_ISA avx2
#else
#define SGL_ISA baseline
#endif

#if defined(__AVX512BW__)
#define SGL_LANES 16
#elif defined(__AVX2__)
#define SGL_LANES 8
#else
#define SGL_LANES 4
#endif

// Of functions, and of what belongs to a class.
#define SGL_INLINE static inline __attribute__((always_inline))
#define SGL_MEMBER inline __attribute__((always_inline))
#define SGL_UNROLL _Pragma("GCC unroll 32")

namespace sgl_kernels {
namespace SGL_ISA {

constexpr int kLanes = SGL_LANES;
constexpr int kBlock = 2 * kLanes;  // elements of one Pair

// Full width registers: 32 of them with AVX-512 and NEON, 16 otherwise.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr bool kManyRegisters = true;
#else
constexpr bool kManyRegisters = false;
#endif

// One register: kLanes lanes of 32 bits, or twice as many words, or four times as many bytes.
typedef float F __attribute__((vector_size(4 * SGL_LANES)));
typedef int32_t I __attribute__((vector_size(4 * SGL_LANES)));
typedef uint32_t U __attribute__((vector_size(4 * SGL_LANES)));
typedef int16_t W __attribute__((vector_size(4 * SGL_LANES)));
typedef int8_t B __attribute__((vector_size(4 * SGL_LANES)));
typedef uint8_t UB __attribute__((vector_size(4 * SGL_LANES)));
// kLanes elements of 16 bits: half a register.
typedef uint16_t H __attribute__((vector_size(2 * SGL_LANES)));

struct Pair {
  F a, b;
};

// Storage types; float is the third.
struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};
template <class T>
constexpr bool kHalf = sizeof(T) == 2;  // short polynomials suffice
template <class T>
constexpr bool kEvenOdd = false;  // a block is kept as its even and its odd elements (simd/block-inl.h)
template <>
constexpr bool kEvenOdd<Bf16> = true;

}  // namespace SGL_ISA
}  // namespace sgl_kernels
