// What crosses the border between the op files and the per-instruction-set kernels: plain data and C pointers.
// Only C headers here: the kernel files are compiled with wider instruction sets, and an inline function of a C++
// header instantiated there could be the copy that the linker keeps for the whole library.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace sgl_kernels::attention {

enum class Type : int32_t { f32 = 0, bf16 = 1, f16 = 2, boolean = 3 };

static constexpr int type_size(Type type) { return type == Type::f32 ? 4 : type == Type::boolean ? 1 : 2; }

// A tensor (batch, seq, head, channel) whose channels are contiguous; strides in bytes, 0 and negative allowed.
struct Tensor4 {
  char* data;
  int64_t batch, seq, head;
};

// Broadcast mask over (batch, head, query, key); strides in bytes, 0 where broadcast. data == nullptr: no mask.
struct MaskView {
  const char* data;
  Type type;
  int64_t batch, head, query, key;
};

struct Problem {
  Tensor4 q, k, v, out;
  MaskView mask;
  float* lse;                    // may be null; element strides below
  float* sums;                   // of key splits: the weights' sums; lse is what they are relative to
  int64_t lse_batch, lse_head;   // the query stride is 1
  int64_t out_split, lse_split;  // bytes, elements: where the next key split writes its part
  const int64_t *cu_q, *cu_k;    // packed sequences (offsets along seq), or null
  Type type, out_type;           // of q, k, v; of out (f32 for key splits)
  int32_t batch, heads, kv_heads, sq, sk, d, dv;
  int32_t causal;                     // 0 none, 1 bottom-right, 2 top-left
  int64_t window_left, window_right;  // -1: unlimited
  float scale, softcap;               // softcap 0: off
};

// Rows row0..row1 of the G*Sq query rows (row = group_head * Sq + query) that share key head kv_head.
struct Task {
  int32_t batch, kv_head, row0, row1;
  int32_t key0, key1, split;  // keys key0..key1 only; the result goes to part `split`
  int32_t kv_heads = 1;       // decoding: the same rows of this many key heads from kv_head on
};

// One instruction set's entry points. Scratch must be 64-byte aligned.
struct AttentionKernels {
  int32_t panel;  // query rows that one register tile serves
  size_t (*scratch_bytes)(const Problem& problem, int32_t rows);
  void (*run)(const Problem& problem, const Task& task, char* scratch);
  size_t (*decode_scratch_bytes)(const Problem& problem, const Task& task);
  void (*decode)(const Problem& problem, const Task& task, char* scratch);  // few rows: dot products along channels
  // Merges `splits` parts of `parts` (float, contiguous rows, with lse and sums) into rows row0..row1 of the (batch,
  // head, query) rows of `whole`.
  void (*combine)(const Problem& parts, const Problem& whole, int32_t splits, int64_t row0, int64_t row1);
};

extern const AttentionKernels kBaseline;
#if defined(__x86_64__)
extern const AttentionKernels kAvx2, kAvx512, kAvx512Bf16, kAmx;
#endif

constexpr int32_t kChunkRows = 512;         // rows at a time: their Q, O and state fit a 2 MB L2 at head_dim 128
constexpr int32_t kMergeBelow = 32;         // fewer queries, and the query heads that share a key head share panels
constexpr int32_t kMaxDecodeRows = 8;       // of one key head
constexpr int32_t kMaxDecodeHeadRows = 64;  // of all key heads of a task
constexpr int64_t kMostRows = int64_t{1} << 30;  // query rows of one key head: twice as many fit 32 bits
constexpr int64_t kFar = int64_t{1} << 29;       // sequence lengths are below this: q + kFar cannot overflow 32 bits

// One sequence of the problem: where its rows start, how long it is, and which keys a query sees
// (key <= query + right and key >= query - left).
struct Sequence {
  const char *q, *k, *v;
  char* out;
  int64_t lse_offset;
  int32_t sq, sk, left, right;
};

static inline int32_t clamp_far(int64_t x) { return static_cast<int32_t>(x < -kFar ? -kFar : x > kFar ? kFar : x); }

static inline Sequence sequence_of(const Problem& p, int32_t batch) {
  Sequence s{p.q.data, p.k.data, p.v.data, p.out.data, 0, p.sq, p.sk, 0, 0};
  if (p.cu_q != nullptr) {
    s.q += p.cu_q[batch] * p.q.seq;
    s.out += p.cu_q[batch] * p.out.seq;
    s.k += p.cu_k[batch] * p.k.seq;
    s.v += p.cu_k[batch] * p.v.seq;
    s.lse_offset = p.cu_q[batch];
    s.sq = static_cast<int32_t>(p.cu_q[batch + 1] - p.cu_q[batch]);
    s.sk = static_cast<int32_t>(p.cu_k[batch + 1] - p.cu_k[batch]);
  } else {
    s.q += batch * p.q.batch;
    s.k += batch * p.k.batch;
    s.v += batch * p.v.batch;
    s.out += batch * p.out.batch;
    s.lse_offset = batch * p.lse_batch;
  }
  const int64_t shift = int64_t{s.sk} - s.sq;
  int64_t right = p.window_right < 0 ? kFar : (p.window_right > kFar ? kFar : p.window_right) + shift;
  if (p.causal == 1 && right > shift) right = shift;
  if (p.causal == 2 && right > 0) right = 0;
  const int64_t left = p.window_left < 0 ? kFar : (p.window_left > kFar ? kFar : p.window_left) - shift;
  s.right = clamp_far(right);
  s.left = clamp_far(left);
  return s;
}

}  // namespace sgl_kernels::attention
