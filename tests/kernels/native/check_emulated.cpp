// Holds every intrinsic of emulated/ against a scalar definition, on random bits and on awkward values: integers,
// order and memory here, floats and dot products in the files beside it. Prints each intrinsic's first difference.
#include <limits>

#include "check_emulated.h"

namespace check {
namespace {

template <class T>
T saturated(int64_t x) {
  constexpr int64_t low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
  return static_cast<T>(x < low ? low : x > high ? high : x);
}

// Lane i of an operation that interleaves the lower or upper halves of each 128 bits.
template <class T, class V>
T interleaved(const V& a, const V& b, int i, int upper) {
  constexpr int per = 16 / sizeof(T);
  const int at = i / per * per + upper * per / 2 + i % per / 2;
  return lane<T>(i % 2 == 0 ? a : b, at);
}

// Lane i where each 128 bits are narrowed: first those of a, then those of b.
template <class To, class From, class V>
To packed(const V& a, const V& b, int i) {
  constexpr int per = 16 / sizeof(To);
  const int in = i % per, at = i / per * (per / 2) + in % (per / 2);
  return saturated<To>(lane<From>(in < per / 2 ? a : b, at));
}

void arithmetic() {
  const __m512i a = any_bits<__m512i>(), b = any_bits<__m512i>(), c = any_bits<__m512i>();
  const auto k = static_cast<uint32_t>(random_bits());
  auto A = [&](int i) { return lane<uint32_t>(a, i); };
  auto B = [&](int i) { return lane<uint32_t>(b, i); };
  auto C = [&](int i) { return lane<uint32_t>(c, i); };
  auto As = [&](int i) { return lane<int32_t>(a, i); };
  auto Bs = [&](int i) { return lane<int32_t>(b, i); };
  auto A16 = [&](int i) { return lane<uint16_t>(a, i); };
  auto B16 = [&](int i) { return lane<uint16_t>(b, i); };
  auto on = [&](int i) { return (k >> i & 1) != 0; };
  const auto half = static_cast<__mmask16>(k);
  CHECK(uint32_t, "add_epi32", _mm512_add_epi32(a, b), A(i) + B(i));
  CHECK(uint32_t, "sub_epi32", _mm512_sub_epi32(a, b), A(i) - B(i));
  CHECK(int32_t, "max_epi32", _mm512_max_epi32(a, b), As(i) > Bs(i) ? As(i) : Bs(i));
  CHECK(int32_t, "min_epi32", _mm512_min_epi32(a, b), As(i) < Bs(i) ? As(i) : Bs(i));
  CHECK(uint16_t, "max_epu16", _mm512_max_epu16(a, b), A16(i) > B16(i) ? A16(i) : B16(i));
  CHECK(uint32_t, "and_si512", _mm512_and_si512(a, b), A(i) & B(i));
  CHECK(uint32_t, "or_si512", _mm512_or_si512(a, b), A(i) | B(i));
  CHECK(uint32_t, "xor_si512", _mm512_xor_si512(a, b), A(i) ^ B(i));
  for (unsigned n : {0u, 1u, 4u, 8u, 15u}) {
    CHECK(uint16_t, "slli_epi16", _mm512_slli_epi16(a, n), A16(i) << n);
    CHECK(uint16_t, "srli_epi16", _mm512_srli_epi16(a, n), A16(i) >> n);
    CHECK(uint32_t, "slli_epi32", _mm512_slli_epi32(a, n + 16), A(i) << (n + 16));
    CHECK(uint32_t, "srli_epi32", _mm512_srli_epi32(a, n + 16), A(i) >> (n + 16));
    CHECK(int32_t, "srai_epi32", _mm512_srai_epi32(a, n + 16), As(i) >> (n + 16));
    CHECK(uint64_t, "srli_epi64", _mm512_srli_epi64(a, n + 28), lane<uint64_t>(a, i) >> (n + 28));
  }
  CHECK(uint8_t, "abs_epi8", _mm512_abs_epi8(a), std::abs(int{lane<int8_t>(a, i)}));
  for (int table : {0xea, 0x96, 0x01, 0x80, 0xca, static_cast<int>(k & 0xff)}) {
    auto logic = [&](int i) {
      uint32_t r = 0;
      for (int bit = 0; bit < 32; ++bit) {
        const int row = (A(i) >> bit & 1) * 4 + (B(i) >> bit & 1) * 2 + (C(i) >> bit & 1);
        r |= static_cast<uint32_t>(table >> row & 1) << bit;
      }
      return r;
    };
    CHECK(uint32_t, "ternarylogic_epi32", _mm512_ternarylogic_epi32(a, b, c, table), logic(i));
  }
  CHECK(uint32_t, "mask_mov_epi32", _mm512_mask_mov_epi32(c, half, a), on(i) ? A(i) : C(i));
  CHECK(uint32_t, "mask_add_epi32", _mm512_mask_add_epi32(c, half, a, b), on(i) ? A(i) + B(i) : C(i));
  CHECK(int32_t, "mask_max_epi32", _mm512_mask_max_epi32(c, half, a, b),
        on(i) ? (As(i) > Bs(i) ? As(i) : Bs(i)) : lane<int32_t>(c, i));
  CHECK(uint16_t, "mask_max_epu16", _mm512_mask_max_epu16(c, k, a, b),
        on(i) ? (A16(i) > B16(i) ? A16(i) : B16(i)) : lane<uint16_t>(c, i));
  int32_t most = INT32_MIN;
  for (int i = 0; i < 16; ++i) most = As(i) > most ? As(i) : most;
  CHECK_ONE("reduce_max_epi32", _mm512_reduce_max_epi32(a), most);

  const __m512i sparse = a & b & c & any_bits<__m512i>() & any_bits<__m512i>();  // some lanes share no bit
  const __m128i bytes = any_bits<__m128i>() & any_bits<__m128i>() & any_bits<__m128i>() & any_bits<__m128i>();
  auto mask = [](int lanes, auto condition) {
    uint32_t m = 0;
    for (int i = 0; i < lanes; ++i) m += condition(i) ? 1u << i : 0u;
    return m;
  };
  CHECK_ONE("test_epi32_mask", _mm512_test_epi32_mask(sparse, c),
            mask(16, [&](int i) { return (lane<uint32_t>(sparse, i) & C(i)) != 0; }));
  CHECK_ONE("test_epi8_mask", _mm_test_epi8_mask(bytes, bytes),
            mask(16, [&](int i) { return lane<uint8_t>(bytes, i) != 0; }));
  CHECK_ONE("cmplt_epi32_mask", _mm512_cmplt_epi32_mask(a, b), mask(16, [&](int i) { return As(i) < Bs(i); }));
  CHECK_ONE("cmpge_epi32_mask", _mm512_cmpge_epi32_mask(a, b), mask(16, [&](int i) { return As(i) >= Bs(i); }));
  CHECK_ONE("cmpge_epi32_mask", _mm512_cmpge_epi32_mask(a, a), 0xffff);
  CHECK_ONE("cmplt_epu16_mask", _mm512_cmplt_epu16_mask(a, b), mask(32, [&](int i) { return A16(i) < B16(i); }));

  CHECK(uint8_t, "cvtepi32_epi8", _mm512_cvtepi32_epi8(a), A(i) & 0xff);
  CHECK(uint16_t, "cvtepi32_epi16", _mm512_cvtepi32_epi16(a), A(i) & 0xffff);
  const __m256i words = any_bits<__m256i>();
  CHECK(uint32_t, "cvtepu16_epi32", _mm512_cvtepu16_epi32(words), lane<uint16_t>(words, i));
}

void order() {
  const __m512i a = any_bits<__m512i>(), b = any_bits<__m512i>();
  const __m512 fa = _mm512_castsi512_ps(a), fb = _mm512_castsi512_ps(b);
  const __m512d da = _mm512_castps_pd(fa), db = _mm512_castps_pd(fb);
  const auto k = static_cast<uint32_t>(random_bits());
  CHECK(uint16_t, "unpacklo_epi16", _mm512_unpacklo_epi16(a, b), interleaved<uint16_t>(a, b, i, 0));
  CHECK(uint16_t, "unpackhi_epi16", _mm512_unpackhi_epi16(a, b), interleaved<uint16_t>(a, b, i, 1));
  CHECK(uint32_t, "unpacklo_epi32", _mm512_unpacklo_epi32(a, b), interleaved<uint32_t>(a, b, i, 0));
  CHECK(uint32_t, "unpackhi_epi32", _mm512_unpackhi_epi32(a, b), interleaved<uint32_t>(a, b, i, 1));
  CHECK(uint64_t, "unpacklo_epi64", _mm512_unpacklo_epi64(a, b), interleaved<uint64_t>(a, b, i, 0));
  CHECK(uint64_t, "unpackhi_epi64", _mm512_unpackhi_epi64(a, b), interleaved<uint64_t>(a, b, i, 1));
  CHECK(uint32_t, "unpacklo_ps", _mm512_unpacklo_ps(fa, fb), interleaved<uint32_t>(a, b, i, 0));
  CHECK(uint32_t, "unpackhi_ps", _mm512_unpackhi_ps(fa, fb), interleaved<uint32_t>(a, b, i, 1));
  CHECK(uint64_t, "unpacklo_pd", _mm512_unpacklo_pd(da, db), interleaved<uint64_t>(a, b, i, 0));
  CHECK(uint64_t, "unpackhi_pd", _mm512_unpackhi_pd(da, db), interleaved<uint64_t>(a, b, i, 1));
  CHECK(int8_t, "packs_epi16", _mm512_packs_epi16(a, b), (packed<int8_t, int16_t>(a, b, i)));
  CHECK(int16_t, "packs_epi32", _mm512_packs_epi32(a, b), (packed<int16_t, int32_t>(a, b, i)));
  CHECK(uint8_t, "packus_epi16", _mm512_packus_epi16(a, b), (packed<uint8_t, int16_t>(a, b, i)));
  auto picked = [&](int i) {  // within 128 bits; 0 where the order's highest bit is set
    const int at = lane<uint8_t>(b, i);
    return at >= 128 ? uint8_t{0} : lane<uint8_t>(a, i / 16 * 16 + at % 16);
  };
  CHECK(uint8_t, "shuffle_epi8", _mm512_shuffle_epi8(a, b), picked(i));
  const __m512i small = _mm512_srai_epi32(a, 15);  // some fit 16 bits, some do not
  CHECK(int16_t, "packs_epi32", _mm512_packs_epi32(small, b), (packed<int16_t, int32_t>(small, b, i)));

  for (int imm : {0x44, 0xee, 0x88, 0xdd, 0xd8, 0xb1, static_cast<int>(k & 0xff)}) {
    auto quarter = [&](int i) {
      const int part = i / 4, from = imm >> 2 * part & 3;
      return lane<uint32_t>(part < 2 ? a : b, from * 4 + i % 4);
    };
    CHECK(uint32_t, "shuffle_i32x4", _mm512_shuffle_i32x4(a, b, imm), quarter(i));
    CHECK(uint32_t, "shuffle_i64x2", _mm512_shuffle_i64x2(a, b, imm), quarter(i));
    CHECK(uint32_t, "shuffle_f32x4", _mm512_shuffle_f32x4(fa, fb, imm), quarter(i));
  }
  const __m128i quarter = any_bits<__m128i>();
  CHECK(uint32_t, "broadcast_i32x4", _mm512_broadcast_i32x4(quarter), lane<uint32_t>(quarter, i % 4));
  auto at = [&]<class T>(T, int i) { return lane<T>(b, lane<T>(a, i) % (64 / sizeof(T))); };
  CHECK(uint8_t, "permutexvar_epi8", _mm512_permutexvar_epi8(a, b), at(uint8_t{}, i));
  CHECK(uint16_t, "permutexvar_epi16", _mm512_permutexvar_epi16(a, b), at(uint16_t{}, i));
  const __m512i other = any_bits<__m512i>();
  auto either = [&](int i) {
    const int from = lane<uint16_t>(a, i) & 63;
    return lane<uint16_t>(from < 32 ? b : other, from & 31);
  };
  CHECK(uint16_t, "permutex2var_epi16", _mm512_permutex2var_epi16(b, a, other), either(i));
  CHECK(uint32_t, "permutexvar_epi32", _mm512_permutexvar_epi32(a, b), at(uint32_t{}, i));
  CHECK(uint32_t, "permutexvar_ps", _mm512_permutexvar_ps(a, fb), at(uint32_t{}, i));
  CHECK(uint16_t, "maskz_permutexvar_epi16", _mm512_maskz_permutexvar_epi16(k, a, b),
        (k >> i & 1) != 0 ? at(uint16_t{}, i) : 0);
}

void casts() {
  const __m512i a = any_bits<__m512i>();
  const __m256i h = any_bits<__m256i>();
  const __m512 f = _mm512_castsi512_ps(a);
  CHECK(uint32_t, "castsi512_ps", f, lane<uint32_t>(a, i));
  CHECK(uint32_t, "castps_si512", _mm512_castps_si512(f), lane<uint32_t>(a, i));
  CHECK(uint32_t, "castps_pd", _mm512_castps_pd(f), lane<uint32_t>(a, i));
  CHECK(uint32_t, "castpd_ps", _mm512_castpd_ps(_mm512_castps_pd(f)), lane<uint32_t>(a, i));
  CHECK(uint32_t, "castsi512_si256", _mm512_castsi512_si256(a), lane<uint32_t>(a, i));
  CHECK(uint32_t, "castsi256_si512", _mm512_castsi512_si256(_mm512_castsi256_si512(h)), lane<uint32_t>(h, i));
  CHECK(uint32_t, "extracti64x4_epi64", _mm512_extracti64x4_epi64(a, 1), lane<uint32_t>(a, i + 8));
  CHECK(uint32_t, "inserti64x4", _mm512_inserti64x4(a, h, 1), i < 8 ? lane<uint32_t>(a, i) : lane<uint32_t>(h, i - 8));
  CHECK(uint32_t, "inserti64x4", _mm512_inserti64x4(a, h, 0), i < 8 ? lane<uint32_t>(h, i) : lane<uint32_t>(a, i));
  CHECK_ONE("cvtss_f32", std::bit_cast<uint32_t>(_mm512_cvtss_f32(f)), lane<uint32_t>(a, 0));
  CHECK_ONE("cvtsi512_si32", _mm512_cvtsi512_si32(a), lane<int32_t>(a, 0));
  const auto x = static_cast<int>(random_bits());
  CHECK(int32_t, "set1_epi32", _mm512_set1_epi32(x), x);
  CHECK(int16_t, "set1_epi16", _mm512_set1_epi16(static_cast<short>(x)), x);
  CHECK(int8_t, "set1_epi8", _mm512_set1_epi8(static_cast<char>(x)), x);
  CHECK(float, "set1_ps", _mm512_set1_ps(-0.0f), -0.0f);
  CHECK(float, "setr_ps", _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), i);
  CHECK(int32_t, "setr_epi32", _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), i);
  CHECK(uint32_t, "setzero_ps", _mm512_setzero_ps(), 0);
  CHECK(uint32_t, "setzero_si512", _mm512_setzero_si512(), 0);
  CHECK_ONE("undefined_ps", std::isnan(lane<float>(_mm512_undefined_ps(), 3)), true);
}

void memory() {
  const __m512i a = any_bits<__m512i>();
  alignas(64) unsigned char to[128];
  std::memcpy(to, &a, 64);
  CHECK(uint8_t, "loadu_ps", _mm512_loadu_ps(to), to[i]);
  CHECK(uint8_t, "loadu_si512", _mm512_loadu_si512(to + 3), to[i + 3]);
  CHECK(uint8_t, "load_ps", _mm512_load_ps(to), to[i]);
  CHECK(uint8_t, "load_si512", _mm512_load_si512(to), to[i]);
  auto stored = [&](const char* name, auto store) {
    std::memset(to, 0, sizeof to);
    store();
    for (int i = 0; i < 64; ++i) compare(name, i, to[64 + i], lane<unsigned char>(a, i));
  };
  stored("storeu_ps", [&] { _mm512_storeu_ps(to + 64, _mm512_castsi512_ps(a)); });
  stored("storeu_si512", [&] { _mm512_storeu_si512(to + 64, a); });
  stored("store_ps", [&] { _mm512_store_ps(to + 64, _mm512_castsi512_ps(a)); });
  stored("store_si512", [&] { _mm512_store_si512(to + 64, a); });
  stored("stream_si512", [&] { _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 64), a); });

  for (int n = 0; n <= 32; ++n) {
    const auto k = static_cast<__mmask32>((uint64_t{1} << n) - 1);
    const __m256i h = _mm512_castsi512_si256(a);
    char* p = edge() - 2 * n;
    std::memset(p, 0, 2 * n);
    _mm512_mask_storeu_epi16(p, k, a);
    for (int i = 0; i < n; ++i) compare("mask_storeu_epi16", i, lane<uint16_t>(*p, i), lane<uint16_t>(a, i));
    CHECK(uint16_t, "maskz_loadu_epi16", _mm512_maskz_loadu_epi16(k, p), i < n ? lane<uint16_t>(a, i) : 0);
    if (n > 16) continue;
    CHECK(uint16_t, "256 maskz_loadu_epi16", _mm256_maskz_loadu_epi16(static_cast<__mmask16>(k), p),
          i < n ? lane<uint16_t>(a, i) : 0);
    std::memset(p, 0, 2 * n);
    _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(k), h);
    for (int i = 0; i < n; ++i) compare("256 mask_storeu_epi16", i, lane<uint16_t>(*p, i), lane<uint16_t>(a, i));
    p = edge() - 4 * n;
    std::memset(p, 0, 4 * n);
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>(k), _mm512_castsi512_ps(a));
    for (int i = 0; i < n; ++i) compare("mask_storeu_ps", i, lane<uint32_t>(*p, i), lane<uint32_t>(a, i));
    CHECK(uint32_t, "maskz_loadu_ps", _mm512_maskz_loadu_ps(static_cast<__mmask16>(k), p),
          i < n ? lane<uint32_t>(a, i) : 0);
  }
}

}  // namespace

void integers() {
  arithmetic();
  order();
  casts();
  memory();
}

}  // namespace check

int main() {
  for (int round = 0; round < 2000; ++round) {
    check::floats();
    check::integers();
    check::dots();
  }
  for (int round = 0; round < 200; ++round) check::tiles();
  std::printf("%zu emulated intrinsics, %ld comparisons with scalar definitions, %zu wrong\n", check::seen.size(),
              check::comparisons, check::wrong.size());
  return check::wrong.empty() ? 0 : 1;
}
