"""What is the same on both simulated devices: calls on the device against the reference on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sgl_kernels
from sgl_kernels.core.registry import registry
from tests import evidence

TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def moved(args: tuple[Any, ...], device: str) -> tuple[Any, ...]:
    """The arguments with every tensor on `device`, strides kept."""

    def move(t: torch.Tensor) -> torch.Tensor:
        there = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device)
        return there.copy_(t)

    return tuple(move(a) if isinstance(a, torch.Tensor) else a for a in args)


def smoke(op: str, device: str, dtype: torch.dtype) -> set[str]:
    """Run the smoke cases of `op` there and compare. Returns the backends that served them."""
    definition = registry.op(op)
    served = set()
    call = getattr(torch.ops.sgl_kernels, op).default
    for case in definition.cases():
        if "smoke" not in case.tags or dtype not in case.dtypes:
            continue
        args = definition.canonical(*case.make(torch.device("cpu"), dtype, seed=5))
        there = moved(args, device)
        chosen = sgl_kernels.explain(op, *there).chosen
        served.add(chosen)
        got, want = call(*there), definition.reference(*args)
        outs = zip(*(o if isinstance(o, tuple) else (o,) for o in (got, want)), strict=True)
        for g, w in outs:
            assert g.device.type == device.split(":")[0], f"{op}: the result is on {g.device}"
            limit = TOLERANCE[dtype]
            torch.testing.assert_close(
                g.cpu().float(), w.float(), rtol=limit, atol=limit, msg=lambda m: f"{op}: {m}"
            )
        evidence.record(op, chosen, "simulated", 1)
    assert served, f"{op} has no smoke case at {dtype}"
    return served


def compiled_block(device: str) -> None:
    """A small block under torch.compile: one graph, the same numbers, on the device."""
    torch.manual_seed(0)
    x = torch.randn(1, 16, 4, 32, dtype=torch.bfloat16)
    weight = torch.randn(32, dtype=torch.bfloat16)

    def block(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y = sgl_kernels.rms_norm(x, weight)
        return x + sgl_kernels.attention(y, y, x, is_causal=True)

    want = block(x, weight)
    run = torch.compile(block, backend="aot_eager", fullgraph=True)
    got = run(x.to(device), weight.to(device))
    assert got.device.type == device.split(":")[0]
    torch.testing.assert_close(got.cpu(), want, rtol=3e-2, atol=3e-2)


def errors_name_the_device(device: str) -> None:
    """Tensors on two devices are an error that says so."""
    q = torch.randn(1, 4, 2, 16, device=device)
    with pytest.raises(ValueError, match="is on cpu but q is on"):
        sgl_kernels.attention(q, q.cpu(), q)
