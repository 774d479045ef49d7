"""What the C++ NVFP4 kernels promise beyond parity: bit-equal codes, exact sums, thread-independent results."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch

from sgl_kernels.backends import nvfp4_cpu
from sgl_kernels.core.registry import registry
from sgl_kernels.core.selection.verdict import Rejected
from sgl_kernels.ops.nvfp4 import reference
from sgl_kernels.ops.nvfp4.api import nvfp4_linear, nvfp4_quantize
from sgl_kernels.ops.nvfp4.layouts import to_layout
from sgl_kernels.ops.nvfp4.placing import for_device

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 16), (3, 48), (5, 256), (7, 272), (64, 1024), (33, 4112))


@pytest.fixture(autouse=True)
def extension(require):
    found = registry.loaded(nvfp4_cpu.IMPLEMENTATIONS[1], None)
    if isinstance(found, Rejected):
        require.skip("cpu", found.detail)


def inputs(shape, seed):
    g = torch.Generator().manual_seed(seed)
    m, k = shape
    x = torch.randn(m, k, generator=g)
    wild = torch.randn(m, k // 16, generator=g).mul(2).exp().repeat_interleave(16, -1)
    quarters = torch.randint(-24, 25, shape, generator=g) * 0.25
    spoiled = x.clone()
    spoiled[0, 3], spoiled[-1, -1], spoiled[m // 2, :16] = float("nan"), float("inf"), 0.0
    yield "normal", x, None
    yield "wild", x * wild, None
    yield "ties", quarters, torch.tensor(1.0)
    yield "saturated", quarters, torch.tensor(0.01)
    yield "tiny scales", quarters, torch.tensor(30.0)
    yield "not finite", spoiled, None
    yield "zeros", torch.zeros(shape), None
    yield "negative zeros", -torch.zeros(shape), None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_quantiser_is_bit_equal_to_the_reference(dtype, shape, seed):
    for name, x, scale in inputs(shape, seed):
        got = nvfp4_quantize(x.to(dtype), scale, nonfinite="propagate", backend="cpu")
        data, block_scale, global_scale = reference.nvfp4_quantize(x.to(dtype), scale, "nvfp4", False)
        assert torch.equal(got.data, data), name
        assert torch.equal(got.block_scale.view(torch.uint8), block_scale.view(torch.uint8)), name
        assert torch.equal(got.global_scale, global_scale), name


def test_every_bf16_value_gets_the_reference_code():
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = x[(x.float().abs() < 2.0**100) & (x.float().abs() > 2.0**-100)]
    x = x[: x.numel() // 16 * 16].reshape(-1, 16)
    for scale in (None, torch.tensor(1.0), torch.tensor(0.37)):
        got = nvfp4_quantize(x, scale, backend="cpu")
        want = reference.nvfp4_quantize(x, scale, "nvfp4", False)
        assert torch.equal(got.data, want[0])


@pytest.mark.parametrize("activation", ["bf16", "int8", "nvfp4"])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 7, 8, 9, 17, 40])
def test_every_row_count_and_tail(activation, m, seed):
    g = torch.Generator().manual_seed(seed)
    for n, k in ((1, 16), (63, 80), (65, 528), (128, 1040)):
        w = for_device(nvfp4_quantize(torch.randn(n, k, generator=g)))
        x, bias = torch.randn(m, k, generator=g), torch.randn(n, generator=g)
        got = nvfp4_linear(x, w, bias, activation=activation, backend="cpu").double()
        linear = to_layout(w, "linear")
        want = reference.nvfp4_linear(
            x.double(), linear.data, linear.block_scale, linear.global_scale, bias.double(), activation, None,
            "nvfp4", "linear", n,
        )  # fmt: skip
        assert (got - want).norm() <= 2e-6 * want.norm() + 1e-6


def test_w4a4_products_are_exact():
    """Small integers everywhere: fp32 sums are exact, so the result must be the float64 one to the bit."""
    g = torch.Generator().manual_seed(1)
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    w, x = (grid[torch.randint(0, 8, s, generator=g)] for s in ((96, 512), (21, 512)))
    w, x = w * (torch.rand(w.shape, generator=g) < 0.5).float().mul(2).sub(1), x
    x[:, ::16] = 6.0
    w[:, ::16] = 6.0
    one = torch.tensor(1.0)
    got = nvfp4_linear(
        x, for_device(nvfp4_quantize(w, one)), activation="nvfp4", input_scale=one, backend="cpu"
    )
    assert torch.equal(got.double(), x.double() @ w.double().T)


@pytest.mark.parametrize("activation", ["bf16", "int8", "nvfp4"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(activation, bad):
    w = for_device(nvfp4_quantize(torch.randn(70, 96)))
    x = torch.randn(9, 96)
    scale = torch.tensor(0.002) if activation == "nvfp4" else None
    clean = nvfp4_linear(x, w, activation=activation, input_scale=scale, backend="cpu")
    x[4, 17] = bad
    got = nvfp4_linear(x, w, activation=activation, input_scale=scale, backend="cpu")
    assert not got[4].isfinite().any()
    keep = torch.arange(9) != 4
    assert torch.equal(got[keep], clean[keep])


@pytest.mark.parametrize("activation", ["bf16", "int8", "nvfp4"])
@pytest.mark.parametrize("m", [1, 30, 1100])
def test_results_do_not_depend_on_threads(activation, m):
    w = for_device(nvfp4_quantize(torch.randn(300, 64)))
    x = torch.randn(m, 64).bfloat16()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = nvfp4_linear(x, w, activation=activation, backend="cpu")
        torch.set_num_threads(2)
        two = nvfp4_linear(x, w, activation=activation, backend="cpu")
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)


@pytest.mark.parametrize("activation", ["int8", "nvfp4"])
def test_rows_do_not_see_each_other(activation):
    """Chunks, tiles and remainders: a row alone gives the bits it gives among 1100."""
    w = for_device(nvfp4_quantize(torch.randn(70, 64)))
    x = torch.randn(1100, 64)
    scale = torch.tensor(0.002) if activation == "nvfp4" else None
    every = nvfp4_linear(x, w, activation=activation, input_scale=scale, backend="cpu")
    for row in (0, 7, 1023, 1024, 1099):
        alone = nvfp4_linear(x[row : row + 1], w, activation=activation, input_scale=scale, backend="cpu")
        assert torch.allclose(alone[0], every[row], rtol=1e-6, atol=1e-6)


LEVELS = ("baseline", "avx2")


def _below(level):
    """Whether the process can be held down to `level` and is not there already."""
    order = ("baseline", "avx2", "avx512vbmi")
    here = torch.ops.sgl_kernels_cpu.nvfp4_level()
    return here in order and order.index(level) <= order.index(here)


@pytest.mark.parametrize("level", LEVELS)
def test_levels_below_the_present_one_agree_with_it(level, require, tmp_path):
    """Quantised bits are equal at every level, and results within fp32's rounding, in a process held down to it."""
    if not _below(level):
        require.skip("cpu", f"this machine has no {level} below its own kernels")
    code = (
        "import sys, torch\n"
        "from tests.kernels.test_cpu_nvfp4 import everything\n"
        "found = everything()\n"
        "torch.save((torch.ops.sgl_kernels_cpu.nvfp4_level(), found), sys.argv[1])\n"
    )
    path = tmp_path / "found.pt"
    env = dict(os.environ, SGL_KERNELS_CPU_ISA=level)
    subprocess.run([sys.executable, "-c", code, str(path)], env=env, check=True, timeout=300)
    ran, found = torch.load(path)
    assert ran == level
    for (name, got), (_, want) in zip(found, everything(), strict=True):
        if got.dtype is torch.uint8:
            assert torch.equal(got, want), name
        else:
            got, want = got.double(), want.double()
            assert (got - want).norm() <= 3e-3 * want.norm(), name


def everything():
    """Named results of every kernel, for one level to be held against another."""
    registry.loaded(nvfp4_cpu.IMPLEMENTATIONS[1], None)
    g = torch.Generator().manual_seed(3)
    found = []
    for dtype in DTYPES:
        x = (torch.randn(53, 272, generator=g) * 3).to(dtype)
        q = nvfp4_quantize(x, backend="cpu")
        found += [(f"codes {dtype}", q.data), (f"scales {dtype}", q.block_scale.view(torch.uint8))]
        w = for_device(nvfp4_quantize(torch.randn(70, 272, generator=g), backend="cpu"))
        for activation, rows in itertools.product(("bf16", "int8", "nvfp4"), (1, 3, 53)):
            y = nvfp4_linear(x[:rows], w, activation=activation, backend="cpu")
            found.append((f"{activation} {dtype} {rows}", y))
        kernel = torch.ops.sgl_kernels_cpu.nvfp4_decode
        found.append((f"decoded {dtype}", kernel(w.data, 272, 70, 0, 2, torch.empty(0, dtype=dtype))))
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_decoded_panels_are_the_weight(dtype):
    w = for_device(nvfp4_quantize(torch.randn(150, 80)))
    linear = to_layout(w, "linear")
    want = reference.without_global(linear.data, linear.block_scale, linear.format, torch.float32)
    got = torch.ops.sgl_kernels_cpu.nvfp4_decode(w.data, 80, 150, 1, 3, torch.empty(0, dtype=dtype))
    assert torch.equal(got, want[64:].T.to(dtype))


@pytest.mark.parametrize("activation", ["bf16", "int8", "nvfp4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_inputs_and_a_transposed_bias(activation, dtype):
    w = for_device(nvfp4_quantize(torch.randn(70, 96)))
    x, bias = torch.randn(96, 2, 11).to(dtype).permute(2, 1, 0), torch.randn(70, 3)[:, 1]
    got = nvfp4_linear(x, w, bias, activation=activation, backend="cpu")
    want = nvfp4_linear(x.contiguous(), w, bias.contiguous(), activation=activation, backend="cpu")
    assert torch.equal(got, want)
    data = nvfp4_quantize(x, backend="cpu")
    assert torch.equal(data.data, nvfp4_quantize(x.contiguous(), backend="cpu").data)


@pytest.mark.parametrize("activation", ["bf16", "int8", "nvfp4"])
@pytest.mark.parametrize("m", [1, 2, 7, 64])
def test_every_output_is_written_and_nothing_around_it(activation, m):
    """Memory that torch hands out full of NaN must not show through: K of one block, N not a multiple of a panel."""
    w = for_device(nvfp4_quantize(torch.randn(67, 16)))
    x = torch.randn(m, 16).bfloat16()
    clean = nvfp4_linear(x, w, activation=activation, backend="cpu")
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(nvfp4_linear(x, w, activation=activation, backend="cpu"), clean)
    finally:
        torch.use_deterministic_algorithms(False)
    assert clean.isfinite().all()


@pytest.mark.parametrize("activation", ["bf16", "int8", "nvfp4"])
@pytest.mark.parametrize("m", [1, 3, 50])
def test_zero_blocks_and_zero_rows_give_the_bias(activation, m):
    weight = torch.zeros(40, 64)
    weight[0, :16] = 1.0
    x, bias = torch.randn(m, 64), torch.randn(40)
    x[0] = 0.0
    got = nvfp4_linear(x, for_device(nvfp4_quantize(weight)), bias, activation=activation, backend="cpu")
    assert torch.equal(got[:, 1:], bias[1:].expand(m, 39))
    assert torch.equal(got[0], bias)


def test_wide_fp32_activations_lose_nothing_to_outliers():
    w = torch.randn(64, 1024)
    q = for_device(nvfp4_quantize(w))
    x = torch.randn(8, 1024)
    x[:, 5] *= 1e4
    linear = to_layout(q, "linear")
    want = reference.nvfp4_linear(
        x.double(),
        linear.data,
        linear.block_scale,
        linear.global_scale,
        None,
        "bf16",
        None,
        "nvfp4",
        "linear",
        64,
    )
    assert (nvfp4_linear(x, q, backend="cpu").double() - want).norm() < 1e-6 * want.norm()


def test_operands_are_checked_before_they_are_read():
    kernel = torch.ops.sgl_kernels_cpu.nvfp4_linear
    w = for_device(nvfp4_quantize(torch.randn(64, 32)))
    one = torch.tensor(1.0)
    with pytest.raises(RuntimeError, match="but x has 48 columns"):
        kernel(torch.randn(2, 48), w.data, one, None, "bf16", None, 64)
    with pytest.raises(RuntimeError, match="panels of 64"):
        kernel(torch.randn(2, 32), w.data, one, None, "bf16", None, 65)
    with pytest.raises(RuntimeError, match="expected bf16, int8 or nvfp4"):
        kernel(torch.randn(2, 32), w.data, one, None, "fp8", None, 64)
    with pytest.raises(RuntimeError, match="one float32"):
        kernel(torch.randn(2, 32), w.data, torch.ones(2), None, "bf16", None, 64)
