"""CUDA, XPU and MPS as fake tensors: shapes, dtypes and devices through every op, with no device there."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import sgl_kernels
from sgl_kernels.core.registry import registry

OPS = [name for name in registry.ops() if not name.startswith("nvfp4")]


@pytest.mark.parametrize("device", ["cuda", "xpu", "mps"])
@pytest.mark.parametrize("op", OPS)
def test_an_op_keeps_device_shape_and_dtype(op, device):
    definition = registry.op(op)
    case = next(c for c in definition.cases() if "smoke" in c.tags)
    args = definition.canonical(*case.make(torch.device("cpu"), torch.float16))
    want = definition.reference(*args)
    with FakeTensorMode():
        there = tuple(
            torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device=device)
            if isinstance(a, torch.Tensor)
            else a
            for a in args
        )
        got = getattr(torch.ops.sgl_kernels, op).default(*there)
    for g, w in zip(*(o if isinstance(o, tuple) else (o,) for o in (got, want)), strict=True):
        assert (g.device.type, g.shape, g.dtype) == (device, w.shape, w.dtype)


def test_a_block_exports_for_a_device_that_is_not_here():
    """One graph of our ops, traced on fake CUDA tensors."""

    def block(x, weight):
        y = sgl_kernels.rms_norm(x, weight)
        return sgl_kernels.attention(y, y, x, is_causal=True)

    with FakeTensorMode():
        x = torch.empty(1, 16, 4, 64, dtype=torch.bfloat16, device="cuda")
        weight = torch.empty(64, dtype=torch.bfloat16, device="cuda")
        graph = make_fx(block)(x, weight)
    called = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
    assert [c for c in called if c.startswith("sgl_kernels.")] == [
        "sgl_kernels.rms_norm.default", "sgl_kernels.attention.default",
    ]  # fmt: skip
