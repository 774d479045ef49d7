// The one way from a family's tables to the table in force. For op files: kernels never choose.
//
//   constinit Choice<RowKernels> choice({
//   #if defined(__x86_64__)
//       {level::avx512, avx512::kKernels},
//       {level::avx2, avx2::kKernels},
//   #endif
//       {level::baseline, baseline::kKernels},
//   });
//
// The best comes first; the first whose features are all in force is the one. It is looked up once, and again after a
// change of level. An op asks once for each call and keeps what it got: what one table prepared, another cannot read.
#pragma once

#include <atomic>
#include <cstddef>

#include "isa.h"

namespace sgl_kernels {

class AnyChoice {
 public:
  AnyChoice(const AnyChoice&) = delete;
  AnyChoice& operator=(const AnyChoice&) = delete;

 protected:
  static constexpr size_t kMost = 6;
  struct Entry {
    Features needs;
    const void* table;
  };
  constexpr AnyChoice() = default;

  const void* get() {
    const void* found = found_.load(std::memory_order_acquire);
    return found != nullptr ? found : choose();
  }

  Entry entries_[kMost] = {};
  size_t count_ = 0;

 private:
  friend struct Force;
  const void* choose();  // null where nothing fits

  std::atomic<const void*> found_{nullptr};
  AnyChoice* next_ = nullptr;  // of those that hold an answer, which a change of level takes from them
};

template <class Table>
class Choice : AnyChoice {
 public:
  struct Offer {
    Features needs;
    const Table& table;
  };
  template <size_t N>
  constexpr explicit Choice(const Offer (&offers)[N]) {
    static_assert(N <= kMost);
    for (const Offer& offer : offers) entries_[count_++] = {offer.needs, &offer.table};
  }

  // The table in force, or null where no offer fits.
  const Table* find() { return static_cast<const Table*>(get()); }
  // The same of a family that offers something for every processor.
  const Table& table() { return *find(); }
};

}  // namespace sgl_kernels
