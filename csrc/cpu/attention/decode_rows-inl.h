// How decoding reads rows of K and V: two vectors of channels at a time, and prefetched in the order of memory.
#pragma once

#include "attention/pack-inl.h"

namespace sgl_kernels::attention {
namespace {

constexpr int kChunk = 128;        // keys whose scores are held at a time
constexpr int kPair = 2 * kLanes;  // channels of a pair of vectors

// Bytes between a prefetch and its use, into L1. On Zen 5 (bf16, cold) 8 KiB took 1.7 times as long, 32 KiB 1.0 to 1.1
// times, and 32 KiB into L2 1.1 times.
constexpr int64_t kAhead = 16384;

// kPair channels as floats. Those of bf16 lie apart, evens in a and odds in b: a shift and a mask take them out of one
// load, where widening in order takes four instructions, and ten as gcc 12 splits them at 512 bits.
template <Type kType>
SGL_INLINE Pair load_two(const char* p) {
  if constexpr (kType == Type::bf16) {
    return widen(read_raw(reinterpret_cast<const Bf16*>(p)));
  } else {
    return {load_as_float<kType>(p), load_as_float<kType>(p + kLanes * type_size(kType))};
  }
}

// The first n < kPair channels, and zeros.
template <Type kType>
SGL_INLINE Pair load_two(const char* p, int n) {
  if constexpr (kType == Type::bf16) {
    return widen(read_raw(reinterpret_cast<const Bf16*>(p), int64_t{n}));
  } else {
    if (n <= kLanes) return {load_as_float<kType>(p, n), F{}};
    return {load_as_float<kType>(p), load_as_float<kType>(p + kLanes * type_size(kType), n - kLanes)};
  }
}

// The lines of a pair of vectors.
template <Type kType>
SGL_INLINE void prefetch_two(const char* p) {
  for (int c = 0; c < kPair * type_size(kType); c += 64) __builtin_prefetch(p + c);
}

// Puts a pair in the order of its channels.
template <Type kType>
SGL_INLINE Pair in_order(Pair x) {
  return kType == Type::bf16 ? sequential(x) : x;
}

// What a task is going to read, in that order: `keys` rows of K and V, a chunk of each in turn. Each row is the bytes
// of all key heads of the task.
class Ahead {
 public:
  struct Rows {
    const char* first;
    int64_t stride, lines;
  };

  Ahead(Rows k, Rows v, int32_t keys) : rows_{k, v}, keys_(keys), end_(min_int(kChunk, keys)) { start_row(); }

  // Prefetches the next `lines` lines.
  SGL_MEMBER void advance(int64_t lines) {
    while (lines > 0 && key_ < keys_) {
      const int64_t n = lines < left_ ? lines : left_;
      for (int64_t i = 0; i < n; ++i) __builtin_prefetch(at_ + i * kLine);
      at_ += n * kLine;
      left_ -= n;
      lines -= n;
      if (left_ == 0) next_row();
    }
  }

  // Where the next `lines` lines lie, for a loop that prefetches them one by one; where they are not in sequence they
  // are prefetched here, and the loop may prefetch what it has.
  SGL_MEMBER const char* claim(int64_t lines, const char* otherwise) {
    if (lines > left_) {
      advance(lines);
      return otherwise;
    }
    const char* from = at_;
    at_ += lines * kLine;
    left_ -= lines;
    if (left_ == 0) next_row();
    return from;
  }

  static constexpr int kLine = 64;

 private:
  void start_row() {
    if (key_ >= keys_) return;
    at_ = rows_[values_].first + key_ * rows_[values_].stride;
    left_ = rows_[values_].lines;
    if (left_ * kLine == rows_[values_].stride) {  // rows follow each other: the chunk is one run
      left_ *= end_ - key_;
      key_ = end_ - 1;
    }
  }

  void next_row() {
    if (++key_ == end_) {
      if (values_) {
        end_ = min_int(end_ + kChunk, keys_);
      } else {
        key_ = chunk_;
      }
      chunk_ = key_;
      values_ = !values_;
    }
    start_row();
  }

  Rows rows_[2];
  int32_t keys_, end_, key_ = 0, chunk_ = 0;  // the chunk is chunk_ .. end_
  bool values_ = false;
  const char* at_ = nullptr;
  int64_t left_ = 0;  // lines of the row
};

}  // namespace
}  // namespace sgl_kernels::attention
