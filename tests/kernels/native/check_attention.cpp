// The baseline attention kernels against double, without torch: for instruction sets that only an emulator has here.
// Random shapes, strides, masks, windows, packed sequences and key splits; inputs end at a page without access.
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "attention/args.h"
#include "attention/sage/args.h"
#include "check_values.h"

using namespace sgl_kernels::attention;

namespace {

std::mt19937 random_bits;
int failures = 0;

int pick(std::initializer_list<int> values) { return values.begin()[random_bits() % values.size()]; }
double normal() { return std::normal_distribution<double>()(random_bits); }

// Memory whose last byte is followed by a page that cannot be read.
struct Guarded {
  char* pages = nullptr;
  size_t length = 0;
  char* data = nullptr;

  explicit Guarded(size_t bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), used = (bytes + page - 1) / page * page;
    length = used + page;
    pages = static_cast<char*>(mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (pages == MAP_FAILED || mprotect(pages + used, page, PROT_NONE) != 0) std::abort();
    data = pages + used - bytes;
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() { munmap(pages, length); }
};

double read(const char* p, Type type) {
  float f;
  uint16_t h;
  if (type == Type::f32) return std::memcpy(&f, p, 4), f;
  std::memcpy(&h, p, 2);
  return type == Type::bf16 ? from_bf16(h) : from_fp16(h);
}

void write(char* p, Type type, double value) {
  const float f = static_cast<float>(value);
  if (type == Type::f32) {
    std::memcpy(p, &f, 4);
    return;
  }
  const uint16_t h = type == Type::bf16 ? to_bf16(f) : to_fp16(value);
  std::memcpy(p, &h, 2);
}

// A tensor (batch, seq, head, channel) in one of the layouts that callers have.
struct Values {
  Guarded memory;
  Tensor4 view;

  Values(Type type, int batch, int seq, int heads, int channels, int layout, double size)
      : memory(static_cast<size_t>(batch) * seq * heads * (channels + (layout == 2 ? 3 : 0)) * type_size(type)) {
    const int64_t row = int64_t{channels + (layout == 2 ? 3 : 0)} * type_size(type);
    view = layout == 1 ? Tensor4{memory.data, heads * seq * row, row, seq * row}  // BHSD
                       : Tensor4{memory.data, heads * seq * row, heads * row, row};
    char* const end = memory.data + batch * view.batch;
    for (char* p = memory.data; p < end; p += type_size(type)) write(p, type, normal() * size);
  }
  char* at(int b, int s, int h) const { return view.data + b * view.batch + s * view.seq + h * view.head; }
};

struct Case {
  Type type;
  int batch, heads, kv_heads, sq, sk, d, dv, causal, left, right, mask, layout, splits;
  bool varlen;
  float scale, softcap;
  std::vector<int64_t> cu_q, cu_k;

  std::string text() const {
    char line[256];
    std::snprintf(line, sizeof line,
                  "type %d batch %d heads %d/%d sq %d sk %d d %d dv %d causal %d window %d %d mask %d layout %d "
                  "splits %d varlen %d scale %g softcap %g",
                  static_cast<int>(type), batch, heads, kv_heads, sq, sk, d, dv, causal, left, right, mask, layout,
                  splits, varlen, scale, softcap);
    return line;
  }
};

void fail(const Case& c, const char* what, double got, double allowed) {
  if (failures++ < 20) std::printf("FAIL %s: %g, allowed %g: %s\n", what, got, allowed, c.text().c_str());
}

Case random_case(bool sage) {
  Case c{};
  c.type = static_cast<Type>(random_bits() % 3);
  c.batch = pick({1, 2});
  c.kv_heads = pick({1, 2});
  c.heads = c.kv_heads * pick({1, 2, 3});
  c.sq = sage ? pick({5, 16, 33, 70}) : pick({1, 1, 2, 3, 9, 17, 40, 65});
  c.sk = pick({1, 5, 23, 24, 25, 64, 100, 193, 260});
  c.d = pick({1, 7, 16, 33, 40, 64, 72});
  c.dv = random_bits() % 2 == 0 ? c.d : pick({1, 5, 24, 33, 64});
  c.causal = pick({0, 0, 1, 2});
  c.left = pick({-1, -1, 0, 20});
  c.right = pick({-1, -1, 0, 7});
  c.mask = pick({0, 0, 1, 2, 3});
  c.layout = pick({0, 1, 2});
  c.splits = sage ? 1 : pick({1, 1, 3});
  c.varlen = !sage && c.mask == 0 && c.splits == 1 && random_bits() % 3 == 0;
  c.scale = sage ? 0.3f : static_cast<float>(pick({10, 30, -20, 0})) / 100;
  c.softcap = sage ? 0.0f : static_cast<float>(pick({0, 0, 4}));
  if (c.varlen) {
    c.cu_q = {0, c.sq, c.sq + (c.sq + 1) / 2};
    c.cu_k = {0, c.sk / 2, c.sk / 2 + c.sk};
    c.batch = 2;
  }
  return c;
}

// The mask's bias on (batch, head, query, key); -infinity hides.
struct Mask {
  MaskView view{};
  Guarded memory;

  explicit Mask(const Case& c) : memory(static_cast<size_t>(c.batch) * c.heads * c.sq * c.sk * 4) {
    if (c.mask == 0) return;
    view.data = memory.data;
    view.type = c.mask == 1 ? Type::boolean : c.mask == 2 ? Type::f32 : c.type;
    view.key = type_size(view.type);
    const bool per_query = random_bits() % 2 == 0, per_head = random_bits() % 2 == 0;
    view.query = per_query ? c.sk * view.key : 0;
    view.head = per_head ? c.sq * c.sk * view.key : 0;
    view.batch = random_bits() % 2 == 0 ? c.heads * c.sq * c.sk * view.key : 0;
    const size_t count = static_cast<size_t>(c.batch) * c.heads * c.sq * c.sk;
    for (size_t i = 0; i < count; ++i) {
      if (c.mask == 1) {
        memory.data[i] = random_bits() % 3 != 0;
      } else {
        write(memory.data + i * view.key, view.type, normal());
      }
    }
  }
  double bias(int b, int h, int q, int k) const {
    if (view.data == nullptr) return 0;
    const char* p = view.data + b * view.batch + h * view.head + q * view.query + k * view.key;
    return view.type == Type::boolean ? (*p != 0 ? 0 : -INFINITY) : read(p, view.type);
  }
};

void check(const Case& c, bool sage) {
  const int rows_q = c.varlen ? static_cast<int>(c.cu_q[2]) : c.sq;
  const int rows_k = c.varlen ? static_cast<int>(c.cu_k[2]) : c.sk;
  const int tensors = c.varlen ? 1 : c.batch;
  const Values q(c.type, tensors, rows_q, c.heads, c.d, c.layout, 1);
  const Values k(c.type, tensors, rows_k, c.kv_heads, c.d, c.layout, 1);
  const Values v(c.type, tensors, rows_k, c.kv_heads, c.dv, c.layout, 1);
  const Values out(c.type, tensors, rows_q, c.heads, c.dv, 0, NAN);
  const Mask mask(c);
  std::vector<float> lse(static_cast<size_t>(tensors) * c.heads * rows_q, NAN);
  Problem p{};
  p.q = q.view, p.k = k.view, p.v = v.view, p.out = out.view, p.mask = mask.view;
  p.lse = lse.data(), p.lse_batch = int64_t{c.heads} * rows_q, p.lse_head = rows_q;
  p.cu_q = c.varlen ? c.cu_q.data() : nullptr, p.cu_k = c.varlen ? c.cu_k.data() : nullptr;
  p.type = p.out_type = c.type;
  p.batch = c.batch, p.heads = c.heads, p.kv_heads = c.kv_heads, p.sq = c.sq, p.sk = c.sk, p.d = c.d, p.dv = c.dv;
  p.causal = c.causal, p.window_left = c.left, p.window_right = c.right, p.scale = c.scale, p.softcap = c.softcap;

  Problem parts = p;
  std::vector<float> part_out(static_cast<size_t>(c.splits) * c.batch * c.heads * c.sq * c.dv);
  std::vector<float> part_lse(static_cast<size_t>(c.splits) * c.batch * c.heads * c.sq), part_sums(part_lse.size());
  if (c.splits > 1) {
    const int64_t row = int64_t{c.dv} * 4;
    parts.out = {reinterpret_cast<char*>(part_out.data()), c.heads * c.sq * row, c.heads * row, row};
    parts.out_type = Type::f32, parts.out_split = c.batch * parts.out.batch;
    parts.lse = part_lse.data(), parts.sums = part_sums.data(), parts.lse_split = int64_t{c.batch} * c.heads * c.sq;
    parts.lse_batch = int64_t{c.heads} * c.sq, parts.lse_head = c.sq;
  }
  auto sequence = [&](int b, const std::vector<int64_t>& cu, int whole) {
    return c.varlen ? static_cast<int>(cu[b + 1] - cu[b]) : whole;
  };
  const int group = c.heads / c.kv_heads;
  for (int b = 0; b < c.batch; ++b) {
    const int sq = sequence(b, c.cu_q, c.sq), sk = sequence(b, c.cu_k, c.sk), rows = group * sq;
    const bool decode = rows <= kMaxDecodeRows && !sage;
    const bool all = decode && (rows + 3) / 4 * 4 * c.kv_heads <= kMaxDecodeHeadRows && random_bits() % 2 == 0;
    const int heads = all ? c.kv_heads : 1;  // of a task
    const size_t bytes = sage     ? kSageBaseline.scratch_bytes(parts, rows)
                         : decode ? kBaseline.decode_scratch_bytes(parts, {b, 0, 0, rows, 0, sk, 0, heads})
                                  : kBaseline.scratch_bytes(parts, rows);
    char* scratch = static_cast<char*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64));
    for (int h = 0; h < c.kv_heads; h += heads) {
      if (sage) {
        const SageSizes sizes = kSageBaseline.sizes(p);
        char* head = static_cast<char*>(std::aligned_alloc(64, (sizes.head_bytes + 127) / 64 * 64));
        if (!kSageBaseline.measure(p, b, h, head)) fail(c, "finite", 0, 1);
        for (int i = 0; i < sizes.blocks; ++i) kSageBaseline.quantise(p, b, h, i, head);
        kSageBaseline.run(p, {b, h, 0, rows, 0, sk, 0}, head, random_bits() % 2 == 0, scratch);
        std::free(head);
        continue;
      }
      for (int s = 0; s < c.splits; ++s) {
        const Task task{b, h, 0, rows, s * sk / c.splits, (s + 1) * sk / c.splits, s, heads};
        (decode ? kBaseline.decode : kBaseline.run)(parts, task, scratch);
      }
    }
    std::free(scratch);
  }
  if (c.splits > 1) kBaseline.combine(parts, p, c.splits, 0, int64_t{c.batch} * c.heads * c.sq);

  double dot = 0, norm_got = 0, norm_want = 0, worst = 0, worst_lse = 0;
  for (int b = 0; b < c.batch; ++b) {
    const int sq = sequence(b, c.cu_q, c.sq), sk = sequence(b, c.cu_k, c.sk), shift = sk - sq;
    const int t = c.varlen ? 0 : b, q0 = c.varlen ? static_cast<int>(c.cu_q[b]) : 0;
    const int k0 = c.varlen ? static_cast<int>(c.cu_k[b]) : 0;
    for (int h = 0; h < c.heads; ++h) {
      for (int i = 0; i < sq; ++i) {
        std::vector<double> score(sk, -INFINITY), want(c.dv, 0.0);
        double top = -INFINITY, sum = 0;
        for (int j = 0; j < sk; ++j) {
          const bool hidden = (c.causal == 1 && j > i + shift) || (c.causal == 2 && j > i) ||
                              (c.left >= 0 && j < i + shift - c.left) || (c.right >= 0 && j > i + shift + c.right);
          if (hidden) continue;
          double x = 0;
          for (int e = 0; e < c.d; ++e) {
            const int at = e * type_size(c.type);
            x += read(q.at(t, q0 + i, h) + at, c.type) * read(k.at(t, k0 + j, h / group) + at, c.type);
          }
          x *= c.scale;
          if (c.softcap > 0) x = c.softcap * std::tanh(x / c.softcap);
          score[j] = x + mask.bias(b, h, i, j);
          top = std::fmax(top, score[j]);
        }
        for (int j = 0; j < sk && top > -INFINITY; ++j) {
          const double weight = std::exp(score[j] - top);
          sum += weight;
          const char* row = v.at(t, k0 + j, h / group);
          for (int e = 0; e < c.dv; ++e) want[e] += weight * read(row + e * type_size(c.type), c.type);
        }
        for (int e = 0; e < c.dv; ++e) {
          const double exact = sum > 0 ? want[e] / sum : 0;
          const double got = read(out.at(t, q0 + i, h) + e * type_size(c.type), c.type);
          const double off = std::fabs(got - exact);
          worst = off <= worst ? worst : off;  // NaN stays
          dot += got * exact, norm_got += got * got, norm_want += exact * exact;
        }
        const double exact = top + std::log(sum), got = lse[t * p.lse_batch + h * p.lse_head + q0 + i];
        if (sage) continue;
        if (!(sum > 0)) {
          if (!(got == -INFINITY)) fail(c, "lse of a row without keys", got, -INFINITY);
        } else if (!(std::fabs(got - exact) <= worst_lse)) {
          worst_lse = std::fabs(got - exact);
        }
      }
    }
  }
  const double limit = c.type == Type::f32 ? 1e-5 : c.type == Type::bf16 ? 2e-2 : 2.5e-3;
  const double cosine = norm_want == 0 ? 1 : dot / std::sqrt(norm_got * norm_want);
  if (sage) {
    if (!(cosine >= 0.998)) fail(c, "sage cosine", cosine, 0.998);
  } else {
    if (!(worst <= limit)) fail(c, "output", worst, limit);
    if (!(worst_lse <= 2e-5)) fail(c, "lse", worst_lse, 2e-5);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 300;
  random_bits.seed(argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 1);
  for (int i = 0; i < rounds; ++i) {
    check(random_case(false), false);
    if (i % 3 == 0) check(random_case(true), true);
  }
  if (failures == 0) {
    std::printf("%d attention calls and %d quantised ones agree with double\n", rounds, (rounds + 2) / 3);
  } else {
    std::printf("%d failures\n", failures);
  }
  return failures == 0 ? 0 : 1;
}
