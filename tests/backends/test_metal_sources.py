"""The Metal kernels' sources compiled as C++ and run: 32 threads in step are one SIMD group.

What this cannot show is Metal's compiler accepting them; on a Mac the backend checks that before it uses them.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess

import pytest
import torch

from sgl_kernels.ops.norm import reference as norms
from sgl_kernels.ops.rope import reference as rope

pytest.importorskip("mlx.core", reason="pip install mlx[cpu] to read the Metal sources")
from sgl_kernels.kernels.mlx import metal

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

PRELUDE = """
#include <barrier>
#include <cmath>
#include <cstddef>
#include <thread>
#include <vector>
typedef unsigned int uint;
typedef _Float16 half_t;
struct Position { uint x; };
static thread_local Position thread_position_in_grid;
static std::barrier<> everyone(32);
static float lanes[32];
static float simd_sum(float value) {
  lanes[thread_position_in_grid.x % 32] = value;
  everyone.arrive_and_wait();
  float sum = 0;
  for (float lane : lanes) sum += lane;
  everyone.arrive_and_wait();
  return sum;
}
namespace metal { static float rsqrt(float value) { return 1.0f / std::sqrt(value); } }
"""
ADALN = """
template <typename T, uint D, bool RESIDUAL, bool LAYER, bool HAS_GATE, bool HAS_SCALE, bool HAS_SHIFT,
          bool HAS_WEIGHT, bool HAS_BIAS>
void adaln(const T* x, const T* residual_in, const float* gate, const float* scale, const float* shift,
           const float* weight, const float* bias, const int* periods, const float* eps, T* out, T* residual_out) {
%s
}
"""
ROPE = """
template <typename T, uint D, int HALF, bool INTERLEAVED>
void rope(const T* x, const float* cos, const float* sin, const int* sizes, T* out) {
%s
}
"""
IN_STEP = """
extern "C" void %s(int rows, void** a) {
  std::vector<std::thread> group;
  for (uint lane = 0; lane < 32; ++lane)
    group.emplace_back([=] {
      for (int row = 0; row < rows; ++row) {
        thread_position_in_grid.x = row * 32 + lane;
        adaln<%s>((%s*)a[0], (%s*)a[1], (float*)a[2], (float*)a[3], (float*)a[4], (float*)a[5], (float*)a[6],
                  (int*)a[7], (float*)a[8], (%s*)a[9], (%s*)a[10]);
      }
    });
  for (auto& thread : group) thread.join();
}
"""
ONE_BY_ONE = """
extern "C" void %s(int threads, void** a) {
  for (int i = 0; i < threads; ++i) {
    thread_position_in_grid.x = i;
    rope<%s>((%s*)a[0], (float*)a[1], (float*)a[2], (int*)a[3], (%s*)a[4]);
  }
}
"""
TYPES = {torch.float32: "float", torch.float16: "half_t"}
FLAGS = [(r, n, m) for r, n, m in itertools.product((0, 1), ("layer", "rms"), ("all", "none", "some"))]
TURNS = list(itertools.product((False, True), (16, 20), TYPES))
D = 40


def _present(what):
    """gate, scale, shift, weight, bias"""
    return {"all": (1, 1, 1, 1, 1), "none": (0, 0, 0, 0, 0), "some": (0, 1, 0, 0, 1)}[what]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    parts = [PRELUDE, ADALN % metal.ADALN, ROPE % metal.ROPE]
    for (residual, norm, what), (dtype, cpp) in itertools.product(FLAGS, TYPES.items()):
        template = ", ".join(map(str, (cpp, D, residual, int(norm == "layer"), *_present(what))))
        name = f"adaln_{residual}_{norm}_{what}_{str(dtype)[6:]}"
        parts.append(IN_STEP % (name, template, cpp, cpp, cpp, cpp))
    for interleaved, half, dtype in TURNS:
        cpp = TYPES[dtype]
        name = f"rope_{int(interleaved)}_{half}_{str(dtype)[6:]}"
        parts.append(ONE_BY_ONE % (name, f"{cpp}, {D}, {half}, {int(interleaved)}", cpp, cpp))
    folder = tmp_path_factory.mktemp("metal")
    (folder / "kernels.cpp").write_text("\n".join(parts))
    command = [
        "g++",
        "-std=c++20",
        "-O1",
        "-w",
        "-shared",
        "-fPIC",
        "-pthread",
        "kernels.cpp",
        "-o",
        "kernels.so",
    ]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "kernels.so"))


def _call(function, count, *tensors):
    pointers = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
    function(count, pointers)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("residual, norm, what", FLAGS)
def test_adaln(library, residual, norm, what, dtype):
    torch.manual_seed(0)
    frames, per_frame = 2, 3
    x, base = torch.randn(2, 1, frames * per_frame, D).to(dtype).unbind(0)
    gate, scale, shift = torch.randn(1, frames, 1, D), torch.randn(D), torch.randn(1, frames * per_frame, D)
    weight, bias = torch.randn(D), torch.randn(D)
    periods = torch.tensor([per_frame, 1, 1, frames, 1, frames * per_frame], dtype=torch.int32)
    out, total = torch.empty_like(x), torch.empty_like(x)
    eps = torch.tensor([1e-5])
    function = getattr(library, f"adaln_{residual}_{norm}_{what}_{str(dtype)[6:]}")
    tables = (gate, scale, shift, weight, bias)
    _call(function, x.shape[1], x.contiguous(), base.contiguous(), *tables, periods, eps, out, total)
    g, sc, sh, w, b = (t if on else None for t, on in zip(tables, _present(what), strict=True))
    if residual:
        want, want_total = norms.residual_gate_norm_scale_shift(base, x, g, sc, sh, w, b, 1e-5, norm)
        torch.testing.assert_close(total, want_total)
    else:
        want = norms.norm_scale_shift(x, sc, sh, w, b, 1e-5, norm)
    torch.testing.assert_close(out, want, rtol=2e-3, atol=2e-3 if dtype is torch.float16 else 2e-5)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("interleaved, half, dtype", TURNS)
def test_rope(library, interleaved, half, dtype, batched):
    torch.manual_seed(1)
    x = torch.randn(2, 3, 2, D).to(dtype)
    angle = torch.randn(2 if batched else 1, 3, half)
    cos, sin, out = angle.cos(), angle.sin(), torch.empty_like(x)
    sizes = torch.tensor([3, 2, cos.shape[0]], dtype=torch.int32)
    function = getattr(library, f"rope_{int(interleaved)}_{half}_{str(dtype)[6:]}")
    _call(function, x.numel() // D * half, x, cos, sin, sizes, out)
    torch.testing.assert_close(out, rope.apply_rope(x, cos, sin, interleaved), rtol=2e-3, atol=1e-4)
