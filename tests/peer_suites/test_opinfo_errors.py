"""What torch refuses, or takes although it is odd: applied modules give torch's result, gradient or error.

torch's own error inputs come from the wheel; it has them for rms_norm, group_norm and gelu alone, so the rest is a
list of ours.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sgl_kernels
from tests.peer_suites import opinfo
from tests.peer_suites.test_opinfo_ops import _filled

MODULES = {
    "rms_norm": lambda: nn.RMSNorm(8),
    "layer_norm": lambda: nn.LayerNorm(8),
    "group_norm": lambda: nn.GroupNorm(2, 8),
    "gelu": lambda: nn.GELU(),
    "gelu tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": lambda: nn.SiLU(),
    "linear": lambda: nn.Linear(8, 5),
}
ODD = {
    "integers": torch.ones(2, 8, dtype=torch.int32),
    "bools": torch.ones(2, 8, dtype=torch.bool),
    "complex": torch.ones(2, 8, dtype=torch.complex64),
    "float8": torch.ones(2, 8).to(torch.float8_e4m3fn),
    "float64": torch.randn(2, 8, dtype=torch.float64),
    "bfloat16": torch.randn(2, 8).bfloat16(),
    "no dimension": torch.tensor(1.5),
    "one dimension": torch.randn(8),
    "another length": torch.randn(2, 7),
    "no rows": torch.randn(0, 8),
    "no positions": torch.randn(2, 8, 0),
    "no channels": torch.randn(2, 0),
    "sparse": torch.eye(8).to_sparse(),
    "meta": torch.randn(2, 8, device="meta"),
    "NaN": torch.full((2, 8), float("nan")),
    "infinities": torch.full((2, 8), float("inf")),
    "lowest": torch.full((2, 8), torch.finfo(torch.float32).min),
    "smallest": torch.full((2, 8), 1e-45),
    "text": "x",
    "None": None,
}


def same(module: nn.Module, x: object, **options: bool) -> None:
    """Two calls applied, cold and warm, give what one stock call gives."""
    want = opinfo.outcome(module, x)
    with sgl_kernels.apply(module):
        for _ in range(2):
            have = opinfo.outcome(module, x)
            if isinstance(want, Tensor) and (want.is_meta or want.is_sparse):
                assert (have.shape, have.dtype, have.layout) == (want.shape, want.dtype, want.layout)
            else:
                opinfo.assert_same(have, want, strides=False, factor=2.0, **options)


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", MODULES)
def test_odd_inputs(name: str, kind: str) -> None:
    torch.manual_seed(0)
    if kind == "lowest" and name in (
        "layer_norm",
        "group_norm",
    ):  # torch overflows to NaN; the exact answer is 0
        module = nn.Sequential(MODULES[name]()).requires_grad_(False)
        with sgl_kernels.apply(module):
            assert not module(ODD[kind]).nan_to_num().any()
        return
    same(nn.Sequential(MODULES[name]()).requires_grad_(False), ODD[kind])


def test_torchs_error_inputs() -> None:
    modules = []
    for error in opinfo.info("rms_norm").error_inputs("cpu"):
        shape, weight, eps = error.sample_input.args
        module = nn.RMSNorm(shape, eps, elementwise_affine=weight is not None)
        modules.append((_filled(module, weight, None), error.sample_input.input))
    for error in opinfo.info("group_norm").error_inputs("cpu"):
        module = nn.GroupNorm(1, 1, affine=False)
        module.num_groups = error.sample_input.args[0]  # the constructor would refuse it
        modules.append((module, error.sample_input.input))
    for error in opinfo.info("gelu").error_inputs("cpu"):
        modules.append((nn.GELU(**error.sample_input.kwargs), error.sample_input.input))
    assert len(modules) >= 6
    for module, x in modules:
        module = nn.Sequential(module).requires_grad_(False)
        assert isinstance(opinfo.outcome(module, x), Exception)
        same(module, x)


@pytest.mark.parametrize("shape", [(0, 8), (2, 8, 0), (2, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_gradients_of_nothing(name: str, shape: tuple[int, ...]) -> None:
    module = MODULES[name]()

    def gradients() -> list[Tensor] | Exception:
        x = torch.randn(shape, requires_grad=True)
        out = opinfo.outcome(module, x)
        if isinstance(out, Exception):
            return out
        return list(torch.autograd.grad(out.sum(), [x, *module.parameters()], allow_unused=True))

    want = gradients()
    with sgl_kernels.apply(nn.Sequential(module)):
        have = gradients()
    if isinstance(want, Exception) or isinstance(have, Exception):
        opinfo.assert_same(have, want)
        return
    for a, b in zip(have, want, strict=True):
        # Torch leaves the gradient of group_norm's weight undefined (NaN) where there is no position to sum over.
        assert (a is None) == (b is None)
        assert a is None or (a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num()))
