// The baseline NVFP4 kernels against double, without torch: for instruction sets that only an emulator has here.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <new>
#include <vector>

#include "nvfp4/args.h"

using namespace sgl_kernels::nvfp4;

namespace {

const Nvfp4Kernels& k = baseline::kKernels;
constexpr double kValues[16] = {0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6};
int failures = 0;

void expect(const char* what, int64_t m, int64_t n, int64_t kk, double worst, double limit) {
  if (!(worst <= limit)) {
    std::printf("FAIL %s at %ld x %ld x %ld: %g, allowed %g\n", what, static_cast<long>(m), static_cast<long>(n),
                static_cast<long>(kk), worst, limit);
    ++failures;
  }
}

double scale_value(uint8_t code) {  // e4m3 >= 0
  const int exponent = code >> 3, mantissa = code & 7;
  return exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
}

float bf16_value(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float v;
  std::memcpy(&v, &wide, 4);
  return v;
}

uint16_t to_bf16(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

std::vector<float> wave(int64_t count, double step) {
  std::vector<float> v(static_cast<size_t>(count));
  for (size_t i = 0; i < v.size(); ++i) {
    v[i] = bf16_value(to_bf16(static_cast<float>(3 * std::sin(step * i) + 0.3 * std::cos(7.7 * i))));
  }
  return v;
}

struct Quantised {
  std::vector<uint8_t> codes, scales;
  float global;
  double at(int64_t row, int64_t col, int64_t kk) const {
    const uint8_t pair = codes[(row * kk + col) / 2];
    return kValues[col % 2 ? pair >> 4 : pair & 15] * scale_value(scales[(row * kk + col) / 16]) * global;
  }
};

Quantised quantise(const std::vector<float>& x, int64_t rows, int64_t kk) {
  Quantised q{std::vector<uint8_t>(rows * kk / 2), std::vector<uint8_t>(rows * kk / 16), 0};
  q.global = k.finite_amax(x.data(), Element::f32, rows * kk) / 2688.0f;
  k.quantize_rows({x.data(), Element::f32, kk}, q.global, 0, rows, q.codes.data(), q.scales.data());
  return q;
}

// Every code is a nearest one for the block's scale.
void check_quantiser(int64_t rows, int64_t kk) {
  const std::vector<float> x = wave(rows * kk, 0.37);
  const Quantised q = quantise(x, rows, kk);
  double worst = 0;
  for (int64_t i = 0; i < rows * kk; ++i) {
    const double scale = scale_value(q.scales[i / 16]) * q.global;
    double nearest = INFINITY;
    for (const double v : kValues) {
      nearest = std::fmin(nearest, std::fabs(x[i] - v * scale));
    }
    worst = std::fmax(worst, (std::fabs(x[i] - q.at(i / kk, i % kk, kk)) - nearest) / (scale + 1e-30));
  }
  expect("quantiser", rows, 0, kk, worst, 1e-5);
}

std::vector<uint8_t> pack(const Quantised& q, int64_t n, int64_t kk) {  // the layout of nvfp4/args.h
  const int64_t panels = (n + 63) / 64, blocks = kk / 16;
  std::vector<uint8_t> out(panels * blocks * kBlockBytes + 4096);  // and room for prefetches that ask beyond it
  const auto code = [&](int64_t row, int64_t col) -> uint8_t {
    if (row >= n) return 0;
    const uint8_t pair = q.codes[(row * kk + col) / 2];
    return col % 2 ? pair >> 4 : pair & 15;
  };
  for (int64_t row = 0; row < panels * 64; ++row) {
    for (int64_t b = 0; b < blocks; ++b) {
      uint8_t* block = out.data() + (row / 64 * blocks + b) * kBlockBytes;
      const int64_t r = row % 64;
      for (int64_t v = 0; v < 2; ++v) {
        for (int64_t byte = 0; byte < 4; ++byte) {
          const int64_t col = 16 * b + 8 * v + byte;
          block[r / 16 * 128 + v * 64 + r % 16 * 4 + byte] =
              static_cast<uint8_t>(code(row, col) | code(row, col + 4) << 4);
        }
      }
      block[512 + r] = row < n ? q.scales[row * blocks + b] : 0;
    }
  }
  return out;
}

void check_linear(int64_t m, int64_t n, int64_t kk, Coding coding, Element type) {
  const Quantised w = quantise(wave(n * kk, 0.61), n, kk);
  const std::vector<uint8_t> packed = pack(w, n, kk);
  const std::vector<float> x = wave(m * kk, 0.23), bias = wave(n, 0.9);
  std::vector<uint16_t> half(x.size());
  for (size_t i = 0; i < x.size(); ++i) half[i] = to_bf16(x[i]);
  const Rows rows{type == Element::f32 ? static_cast<const void*>(x.data()) : half.data(), type, kk};
  const float input_scale = k.finite_amax(rows.data, type, m * kk) / 2688.0f;
  const Linear layer{packed.data(), w.global, bias.data(), Element::f32, n, kk, coding};
  std::vector<uint8_t> tiles(m * kk * 8 + 8192);
  std::vector<float> factor(m), out(m * n, NAN);
  std::vector<uint16_t> out_half(m * n, 0xFFFF);
  k.encode(rows, coding, input_scale, 0, m, m, tiles.data(), factor.data());
  auto* scratch = static_cast<uint8_t*>(
      ::operator new[](static_cast<size_t>(k.panel_scratch_bytes(m, coding)), std::align_val_t{64}));
  void* to = type == Element::f32 ? static_cast<void*>(out.data()) : out_half.data();
  k.multiply(layer, tiles.data(), factor.data(), m, to, type, 0, (n + 63) / 64, scratch);
  ::operator delete[](scratch, std::align_val_t{64});

  Quantised a;
  if (coding == Coding::nvfp4) {
    a = Quantised{std::vector<uint8_t>(m * kk / 2), std::vector<uint8_t>(m * kk / 16), input_scale};
    k.quantize_rows(rows, input_scale, 0, m, a.codes.data(), a.scales.data());
  }
  double error = 0, size = 0;
  for (int64_t i = 0; i < m; ++i) {
    double amax = 0;
    for (int64_t c = 0; c < kk; ++c) amax = std::fmax(amax, std::fabs(x[i * kk + c]));
    for (int64_t j = 0; j < n; ++j) {
      double want = bias[j];
      for (int64_t c = 0; c < kk; ++c) {
        double v = x[i * kk + c];
        if (coding == Coding::int8) v = std::nearbyint(v * 127 / amax) * amax / 127;
        if (coding == Coding::nvfp4) v = a.at(i, c, kk);
        want += v * w.at(j, c, kk);
      }
      const double got = type == Element::f32 ? out[i * n + j] : bf16_value(out_half[i * n + j]);
      error += (got - want) * (got - want);
      size += want * want;
    }
  }
  const char* names[] = {"W4A8", "W4A4", "W4A16 of 16 bits", "W4A16 of 32 bits"};
  const double limit = type == Element::f32 ? (coding == Coding::int8 ? 1e-4 : 2e-6) : 3e-3;
  expect(names[static_cast<int>(coding)], m, n, kk, std::sqrt(error / size), limit);
}

}  // namespace

int main() {
  check_quantiser(3, 48);
  check_quantiser(5, 272);
  for (const int64_t m : {1, 3, 50}) {
    for (const auto& [n, kk] : {std::pair<int64_t, int64_t>{1, 16}, {70, 80}, {128, 528}}) {
      for (const Element type : {Element::f32, Element::bf16}) {
        check_linear(m, n, kk, Coding::int8, type);
        check_linear(m, n, kk, Coding::nvfp4, type);
        check_linear(m, n, kk, type == Element::f32 ? Coding::wide32 : Coding::wide16, type);
      }
    }
  }
  std::printf(failures == 0 ? "NVFP4 kernels agree with double\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
