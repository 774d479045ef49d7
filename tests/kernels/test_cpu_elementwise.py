"""Modulation and activations in C++ against float64, and every op again at each lower instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels.cpu_rowwise import DTYPES, MISSING, check, normal, padded, run


@pytest.fixture(autouse=True)
def extension(require):
    if MISSING is not None:
        require.skip("cpu", MISSING)


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ((72,), (2, 72), (2, 1, 72), (2, 12, 72), (2, 3, 1, 72), (1, 12, 72)))
def test_modulation_matches_float64(dtype, shape):
    x, residual = normal(2, 12, 72, dtype=dtype), normal(2, 12, 72, dtype=dtype, seed=1)
    for params in (dtype, torch.float32):
        one, two = normal(*shape, dtype=params, seed=2), normal(*shape, dtype=params, seed=3)
        for value in (x, padded(x)):
            check("scale_shift", value, one, two)
            check("scale_shift", value, one, None)
            check("scale_shift", value, None, two)
            check("gate_residual", residual, value, one)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", (1, 2, 7, 32, 66, 131, 3072))
def test_activations_match_float64(dtype, dim):
    for rows in (1, 5):
        x, up = normal(rows, dim, dtype=dtype, scale=3), normal(rows, dim, dtype=dtype, seed=1)
        check("gelu_tanh", x)
        check("silu_mul", x, up)
        check("silu_mul", torch.cat((x, up), -1), None)
        for approximate in ("tanh", "none"):
            check("gelu_mul", padded(x), up, approximate)
            check("gelu_mul", padded(torch.cat((x, up), -1)), None, approximate)


def test_chunks_are_read_by_stride():
    gate, up = normal(3, 5, 2 * 48, dtype=torch.bfloat16).chunk(2, dim=-1)
    check("silu_mul", gate, up)
    check("gelu_mul", gate.transpose(0, 1), up.transpose(0, 1), "tanh")
    check("gelu_tanh", normal(6, 10)[:, ::2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_values_do_as_torch_does(dtype):
    limit = torch.finfo(dtype).max
    x = torch.tensor([0.0, -0.0, 1e-30, 20, -20, 88, -88, 89, -89, 1000, -1000, limit, -limit], dtype=dtype)
    special = torch.tensor([float("inf"), -float("inf"), float("nan")], dtype=dtype)
    ones = torch.ones_like(x)
    for kind, reference in (("tanh", "tanh"), ("none", "none")):
        want = torch.nn.functional.gelu(x.double(), approximate=reference).to(dtype)
        torch.testing.assert_close(run("gelu_mul", x, ones, kind)[0], want, rtol=2e-2, atol=1e-6)
    want = torch.nn.functional.silu(x.double()).to(dtype)
    torch.testing.assert_close(run("silu_mul", x, ones)[0], want, rtol=2e-2, atol=1e-6)
    for out in (run("silu_mul", special, ones[:3])[0], run("gelu_tanh", special)[0]):
        assert out[0] == float("inf")
        assert out[1:].isnan().all()


def test_dense_range_of_silu_and_gelu_in_fp32():
    x = torch.linspace(-30, 30, 200_003)
    ones = torch.ones_like(x)
    for op, args in (("silu_mul", (x, ones)), ("gelu_tanh", (x,)), ("gelu_mul", (x, ones, "none"))):
        check(op, *args)


def test_every_16_bit_value():
    """All 65,536 patterns of both types: NaN where torch has it, else within two units of torch."""
    patterns = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        x = patterns.view(dtype)
        wide = x.double()  # 0.5 (1 + tanh u) is sigmoid(2 u), which does not cancel even in float64
        for op, args, plain in (
            ("gelu_tanh", (x,), wide * torch.sigmoid(1.5957691216057308 * (wide + 0.044715 * wide**3))),
            ("silu_mul", (x, torch.ones_like(x)), torch.nn.functional.silu(wide)),
        ):
            out, want = run(op, *args)[0], plain.to(dtype)
            assert torch.equal(out.isnan(), want.isnan())
            # Below 1e-36 fp32 has no room for the factor; torch's own kernels give 0 there too.
            torch.testing.assert_close(
                out.double(), want.double(), rtol=2 * torch.finfo(dtype).eps,
                atol=max(1e-36, 2 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps), equal_nan=True,
            )  # fmt: skip


def test_wrong_arguments_are_named():
    for args, text in (
        (("silu_mul", normal(2, 7), None), "x has 7 columns, expected an even number"),
        (("silu_mul", normal(2, 8), normal(2, 7)), "up has shape"),
        (("silu_mul", normal(2, 8), normal(2, 8).half()), "up has another dtype than x"),
        (("gelu_mul", normal(2, 8), None, "fast"), "approximate is 'fast'"),
        (("gate_residual", normal(2, 8), normal(2, 8), normal(5, 8)), "gate has shape"),
        (("scale_shift", normal(2, 8), normal(9), None), "scale has shape"),
    ):
        with pytest.raises(RuntimeError, match=text):
            run(*args)


@pytest.mark.slow
@pytest.mark.parametrize("level", ("baseline", "avx2", "avx512"))
def test_forced_instruction_sets_pass_the_same_tests(level):
    if "SGL_KERNELS_CPU_ISA" in os.environ:
        pytest.skip("already forced")
    here = Path(__file__).parent
    tests = [str(here / name) for name in ("test_cpu_norm.py", "test_cpu_rope.py", "test_cpu_elementwise.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        env={**os.environ, "SGL_KERNELS_CPU_ISA": level}, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]


def test_unknown_instruction_set_is_an_error():
    code = "from sgl_kernels.kernels.cpu.loader import load; print(load())"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "SGL_KERNELS_CPU_ISA": "avx1024"},
                          cwd=ROOT, capture_output=True, text=True, check=False)  # fmt: skip
    assert "SGL_KERNELS_CPU_ISA is 'avx1024'; expected one of baseline, avx2" in done.stdout
