"""Rows, planes, tables and keys more than 2^31 elements (and 2^32 bytes) apart: each offset needs 64 bits.

The memory between them is mapped and never touched, so that a case takes some pages.
"""

from __future__ import annotations

import mmap
from math import prod

import pytest
import torch
from torch import Tensor

from tests.kernels.cpu_rowwise import DTYPES, MISSING, check, normal, run

STEP = 2**31 + 64  # elements
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


@pytest.fixture(autouse=True)
def extension(require):
    if MISSING is not None:
        require.skip("cpu", MISSING)


def far(x: Tensor, dim: int) -> Tensor:
    """The values of x with a step of STEP elements in `dim`; all else as it lies."""
    span = (x.shape[dim] - 1) * STEP + prod(x.shape)
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
        memory = mmap.mmap(-1, span * x.element_size() + mmap.PAGESIZE, flags=flags)
    except (OSError, ValueError) as error:
        pytest.skip(f"this process may not map {span * x.element_size() >> 30} GiB: {error}")
    strides = list(x.stride())
    strides[dim] = STEP
    return torch.frombuffer(memory, dtype=x.dtype).as_strided(x.shape, strides).copy_(x)


def test_the_steps_do_not_fit_32_bits() -> None:
    x = far(normal(3, 72, dtype=torch.float16), 0)
    assert x[2].data_ptr() - x[0].data_ptr() == 2 * STEP * 2 > 2**33


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(dtype: torch.dtype) -> None:
    x, y, scale = (
        normal(3, 6, 72, dtype=dtype),
        normal(3, 6, 72, dtype=dtype, seed=1),
        normal(3, 1, 72, seed=2),
    )
    weight = far(normal(72, dtype=dtype, seed=3), 0)
    check("rms_norm", far(x, 0), weight, 1e-6, 0.0)
    check("rms_norm", far(x[0], 0), None, 1e-6, 1.0)
    check("layer_norm", far(x, 1), weight, weight, 1e-6)
    wide = far(scale, 0)
    check("norm_scale_shift", far(x, 0), wide, wide, None, None, 1e-6, "layer")
    check("norm_scale_shift", x, far(normal(3, 3, 1, 72, seed=4), 1), wide, None, None, 1e-6, "rms")
    rest = (wide, wide, wide, None, None, 1e-6, "layer")
    check("residual_gate_norm_scale_shift", far(y, 0), far(x, 1), *rest)


@pytest.mark.parametrize("dtype", DTYPES)
def test_modulation_and_activations(dtype: torch.dtype) -> None:
    x, y, gate = (
        normal(3, 6, 72, dtype=dtype),
        normal(3, 6, 72, dtype=dtype, seed=1),
        normal(3, 1, 72, seed=2),
    )
    wide = far(gate, 0)
    check("scale_shift", far(x, 0), wide, wide)
    check("gate_residual", far(x, 1), far(y, 0), wide)
    check("silu_mul", far(x, 0), far(y, 1))
    check("silu_mul", far(x, 1), None)
    check("gelu_tanh", far(x, 0))
    check("gelu_mul", far(x, 1), far(y, 0), "none")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", (False, True))
def test_rope(dtype: torch.dtype, interleaved: bool) -> None:
    q, k = normal(3, 5, 6, 64, dtype=dtype), normal(3, 5, 2, 64, dtype=dtype, seed=1)
    cos, sin = normal(3, 5, 32, seed=2), normal(3, 5, 32, seed=3)
    for dim in (0, 1, 2):
        check("apply_rope", far(q, dim), cos, sin, interleaved)
    for dim in (0, 1):
        check("apply_rope", q, far(cos, dim), far(sin, dim), interleaved)
    weight = far(normal(64, seed=4), 0)
    tables = far(cos, 0), far(sin, 1)
    check("qk_norm_rope", far(q, 0), far(k, 1), weight, None, *tables, 1e-6, interleaved)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ("none", "silu"))
def test_group_norm(dtype: torch.dtype, activation: str) -> None:
    x, weight = normal(3, 6, 5, 7, dtype=dtype), far(normal(6, seed=1), 0)
    last = normal(3, 5, 6, dtype=dtype, seed=2)
    images = [far(x, dim) for dim in (0, 1, 2)]  # a whole image apart, planes apart, lines of a plane apart
    images += [far(last, dim).transpose(1, 2) for dim in (0, 1)]  # channels last: images and positions apart
    for image in images:
        check("group_norm", image, 3, weight, weight, 1e-5, activation)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_written_far_apart(dtype: torch.dtype) -> None:
    x, y = normal(3, 6, 72, dtype=dtype), normal(3, 6, 72, dtype=dtype, seed=1)
    image, heads = normal(3, 6, 5, dtype=dtype, seed=2), normal(3, 5, 6, 64, dtype=dtype, seed=3)
    cos, sin = normal(5, 32, seed=4), normal(5, 32, seed=5)
    calls = (
        ("rms_norm", (x, None, 1e-6, 0.0)),
        ("scale_shift", (x, y[0, 0], None)),
        ("silu_mul", (x, y)),
        ("group_norm", (image, 3, None, None, 1e-5, "none")),
        ("apply_rope", (heads, cos, sin, False)),
    )
    for op, args in calls:
        (want,) = run(op, *args)
        for dim in (0, 1):
            out = far(torch.zeros_like(args[0]), dim)
            run(f"{op}_out", *args, out)
            torch.testing.assert_close(out, want)  # rows that go together are summed in another order


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(dtype: torch.dtype) -> None:
    x, weight, bias = (
        normal(5, 72, dtype=dtype),
        normal(3, 72, dtype=dtype, seed=1),
        normal(3, dtype=dtype, seed=2),
    )
    op = torch.ops.sgl_kernels_cpu
    if reason := op.linear_unsupported_reason():
        with pytest.raises(RuntimeError, match="AVX2"):
            op.linear(x, weight, bias, "silu")
        assert "AVX2" in reason
        return
    want = op.linear(x, weight, bias, "silu")
    for dim in (0, 1):
        assert torch.equal(op.linear(far(x, 0), far(weight, dim), far(bias, 0), "silu"), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", (3, 40))
def test_attention(dtype: torch.dtype, rows: int) -> None:
    q, k, v = (normal(2, n, 2, 64, dtype=dtype, seed=n) for n in (rows, 12, 13))
    k, v = k[:, :12], v[:, :12]
    mask = normal(2, 2, rows, 12, dtype=dtype, seed=7)
    op = torch.ops.sgl_kernels_cpu
    tail = (0, 0.125, -1, -1)
    want, lse = op.attention(q, k, v, mask, *tail, 0.0, True)
    quantised = op.sage_attention(q, k, v, mask, *tail, True)
    for dim in (0, 1, 2):
        inputs = far(q, dim), far(k, dim), far(v, dim), far(mask, (0, 3, 1)[dim])
        out, again = op.attention(*inputs, *tail, 0.0, True)
        assert torch.equal(out, want)
        assert torch.equal(again, lse)
        assert torch.equal(op.sage_attention(*inputs, *tail, True), quantised)
