// The baseline row kernels against double, without torch: for instruction sets that only an emulator has here.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "check_values.h"
#include "rowwise/args.h"

using namespace sgl_kernels;

namespace {

int failures = 0;

void expect(const char* what, int dim, double worst, double limit) {
  if (!(worst <= limit)) {
    std::printf("FAIL %s at dim %d: %g, allowed %g\n", what, dim, worst, limit);
    ++failures;
  }
}

double value_at(Dtype dtype, const std::vector<char>& data, int i) {
  if (dtype == Dtype::f32) {
    float value;
    std::memcpy(&value, &data[i * 4], 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, &data[i * 2], 2);
  return dtype == Dtype::bf16 ? from_bf16(bits) : from_fp16(bits);
}

std::vector<char> row_of(Dtype dtype, int dim) {
  std::vector<char> data(dim * (dtype == Dtype::f32 ? 4 : 2));
  for (int i = 0; i < dim; ++i) {
    const float value = static_cast<float>(std::sin(0.7 * i) * 2 + 0.25);
    if (dtype == Dtype::f32) {
      std::memcpy(&data[i * 4], &value, 4);
    } else {
      // Any pattern with a middling exponent will do for fp16; it is read back as what it is.
      const uint16_t bits =
          dtype == Dtype::bf16 ? to_bf16(value) : static_cast<uint16_t>(0x3800 + (i * 37) % 1500 + (i % 2) * 0x8000);
      std::memcpy(&data[i * 2], &bits, 2);
    }
  }
  return data;
}

void check(Dtype dtype, int dim, double limit) {
  const RowKernels& k = baseline::kKernels;
  const std::vector<char> x = row_of(dtype, dim);
  std::vector<char> out(x.size());
  std::vector<float> gain(padded(dim)), shift(padded(dim));
  const Param none = {nullptr, Dtype::f32};
  k.affine({none, none, none, none, 0.0f, dtype, dim, gain.data(), shift.data()});
  k.norm({dtype, Norm::layer, false, x.data(), 0, out.data(), 0, 1, dim, 1e-5f, gain.data(), shift.data()});
  double mean = 0, variance = 0, worst = 0;
  for (int i = 0; i < dim; ++i) mean += value_at(dtype, x, i) / dim;
  for (int i = 0; i < dim; ++i) variance += std::pow(value_at(dtype, x, i) - mean, 2) / dim;
  for (int i = 0; i < dim; ++i) {
    const double want = (value_at(dtype, x, i) - mean) / std::sqrt(variance + 1e-5);
    worst = std::fmax(worst, std::fabs(value_at(dtype, out, i) - want));
  }
  expect("layer_norm", dim, worst, limit);

  for (const Activation kind : {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf}) {
    k.activate({dtype, kind, false, x.data(), 0, nullptr, 0, out.data(), 0, 1, dim});
    worst = 0;
    for (int i = 0; i < dim; ++i) {
      const double v = value_at(dtype, x, i);
      const double u = 1.5957691216057308 * (v + 0.044715 * v * v * v);
      const double want = kind == Activation::silu        ? v / (1 + std::exp(-v))
                          : kind == Activation::gelu_tanh ? v / (1 + std::exp(-u))
                                                          : v * 0.5 * std::erfc(-v / std::sqrt(2.0));
      worst = std::fmax(worst, std::fabs(value_at(dtype, out, i) - want));
    }
    expect("activation", dim, worst, limit);
  }

  const int half = dim / 2;
  if (half == 0) return;
  std::vector<float> angles_cos(half), angles_sin(half), cosine(padded(half)), sine(padded(half));
  for (int i = 0; i < half; ++i) {
    angles_cos[i] = static_cast<float>(std::cos(0.3 * i));
    angles_sin[i] = static_cast<float>(std::sin(0.3 * i));
  }
  for (const bool interleaved : {true, false}) {
    k.plain({{angles_cos.data(), Dtype::f32}, dtype, interleaved, half, cosine.data()});
    k.plain({{angles_sin.data(), Dtype::f32}, dtype, interleaved, half, sine.data()});
    k.rope({dtype, interleaved, false, false, x.data(), 0, out.data(), 0, 1, dim, 2 * half, 0.0f, nullptr,
            cosine.data(), sine.data()});
    worst = 0;
    for (int i = 0; i < half; ++i) {
      const int low = interleaved ? 2 * i : i, high = interleaved ? 2 * i + 1 : i + half;
      const double a = value_at(dtype, x, low), b = value_at(dtype, x, high);
      worst = std::fmax(worst, std::fabs(value_at(dtype, out, low) - (a * angles_cos[i] - b * angles_sin[i])));
      worst = std::fmax(worst, std::fabs(value_at(dtype, out, high) - (a * angles_sin[i] + b * angles_cos[i])));
    }
    expect(interleaved ? "rope interleaved" : "rope halves", dim, worst, limit);
  }
}

}  // namespace

int main() {
  for (const int dim : {1, 2, 7, 8, 9, 64, 131}) {
    check(Dtype::f32, dim, 2e-6);
    check(Dtype::bf16, dim, 2e-2);
    check(Dtype::f16, dim, 2e-3);
  }
  std::printf(failures == 0 ? "row kernels agree with double\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
