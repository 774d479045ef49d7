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
        there = tuple(_there(a, device) for a in args)
        got = getattr(torch.ops.sgl_kernels, op).default(*there)
    for g, w in zip(*(o if isinstance(o, tuple) else (o,) for o in (got, want)), strict=True):
        assert (g.device.type, g.shape, g.dtype) == (device, w.shape, w.dtype)


def _there(a, device):
    if not isinstance(a, torch.Tensor):
        return a
    return torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device=device)


@pytest.mark.parametrize("device", ["cuda", "xpu", "mps"])
def test_every_op_compiles_for_a_device_that_is_not_here(device):
    """torch.compile with aot_eager, every op a node of one graph, nvfp4 included."""
    calls, given, want = [], [], []
    for name in registry.ops():
        definition = registry.op(name)
        case = next(c for c in definition.cases() if "smoke" in c.tags)
        dtype = torch.bfloat16 if torch.bfloat16 in case.dtypes else next(iter(case.dtypes))
        args = definition.canonical(*case.make(torch.device("cpu"), dtype))
        calls.append(getattr(torch.ops.sgl_kernels, name).default)
        given.append(args)
        want.append(definition.fake(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in args)))
    torch._dynamo.reset()
    with FakeTensorMode():
        there = [tuple(_there(a, device) for a in args) for args in given]

        def everything(many):
            return [call(*args) for call, args in zip(calls, many, strict=True)]

        got = torch.compile(everything, backend="aot_eager", fullgraph=True)(there)
    for call, one, expected in zip(calls, got, want, strict=True):
        for g, w in zip(*(o if isinstance(o, tuple) else (o,) for o in (one, expected)), strict=True):
            assert (g.device.type, g.shape, g.dtype) == (device, w.shape, w.dtype), call


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
