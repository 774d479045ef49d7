// Partition of rows over torch's own threads, and scratch memory for one of them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace sgl_kernels {

// Elements below which a second thread costs more than it saves (torch's own grain).
constexpr int64_t kGrainElements = 32768;

// f(begin, end) over [0, rows) on torch's threads. What a row's result is must not depend on the cut.
template <class Function>
void parallel_rows(int64_t rows, int64_t elements_per_row, const Function& f) {
  if (rows <= 0) {
    return;
  }
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, elements_per_row));
  if (rows <= grain) {
    f(int64_t{0}, rows);
  } else {
    torch::stable::parallel_for(0, rows, grain, f);
  }
}

// Memory for one thread, aligned to a cache line: on the stack if small. (thread_local storage in a shared library
// made a row kernel 2.9 times slower at 256x768.)
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    if (bytes > static_cast<int64_t>(sizeof(local_))) {
      heap_ = static_cast<char*>(std::aligned_alloc(64, (static_cast<size_t>(bytes) + 63) / 64 * 64));
      if (heap_ == nullptr) {
        throw std::bad_alloc();
      }
    }
  }
  ~Scratch() { std::free(heap_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  char* bytes() { return heap_ != nullptr ? heap_ : local_; }
  float* floats() { return reinterpret_cast<float*>(bytes()); }

 private:
  char* heap_ = nullptr;
  alignas(64) char local_[16384];
};

}  // namespace sgl_kernels
