// The border between the op file of quantised attention and its kernels.
#pragma once

#include "attention/args.h"

namespace sgl_kernels::attention {

struct SageSizes {
  int32_t block, blocks;  // keys per block
  size_t head_bytes;      // memory that a quantised key head takes
};

struct SageKernels {
  int32_t panel;
  SageSizes (*sizes)(const Problem& p);
  // `memory` belongs to one key head. Means, factors and scales of one head; false where K or V holds NaN or
  // infinities, or values too large.
  bool (*measure)(const Problem& p, int32_t batch, int32_t kv_head, char* memory);
  void (*quantise)(const Problem& p, int32_t batch, int32_t kv_head, int32_t block, char* memory);
  size_t (*scratch_bytes)(const Problem& p, int32_t rows);
  // False where a row that sees keys gave weight to none, because its products overflow.
  bool (*run)(const Problem& p, const Task& task, char* memory, bool int8_values, char* scratch);
};

extern const SageKernels kSageBaseline;
#if defined(__x86_64__)
extern const SageKernels kSageAvx2, kSageVnni;
#endif

}  // namespace sgl_kernels::attention
