"""Norms, rope, modulation and activations in C++: AVX-512, AVX2, SSE2 or NEON (csrc/cpu)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sgl_kernels.backends._extension import absent, extension
from sgl_kernels.backends._measured import measured
from sgl_kernels.core.device import Device
from sgl_kernels.core.selection.implementation import Implementation, Rank
from sgl_kernels.core.selection.requires import FLOATS, Requires

CPU = Requires(platforms=frozenset({"cpu"}), dtypes=FLOATS)
FIRST, BEHIND = 50, -1
FEW_ROWS = 8
"""Of fewer rows torch's layer_norm in half types is the faster: a call of ours costs 2 us more and prepares the
parameters first. 0.43 to 0.80 of torch's speed at 1 and 2 rows of 768 and 3072, par at 8 (bfloat16); AVX2,
benchmarks/notes/cpu_norms.md. In float32 torch loses digits to a large mean (5e-4 at 1e4 deviations), and no speed is
worth that: there the floor takes the mean out first, which costs more than our call."""
TINY = 1024
"""Below this many elements the call itself decides, and torch's layer_norm and gelu cost less to call than ours:
0.50 to 0.90 of our time at 64 and 256 elements, par at 1,024 with AVX-512; gelu_tanh with AVX2 0.48 at 64, 0.64 at
256, 1.14 to 1.28 at 1,024 (benchmarks/notes/cpu_norms.md)."""


def _loader(op: str) -> Callable[[Any], Callable[..., Any]]:
    def load_op(config: Any) -> Callable[..., Any]:
        return getattr(extension(), op).default  # type: ignore[no-any-return]

    return load_op


def _loader_out(op: str) -> Callable[[Any], Callable[..., Any]]:
    def load_op_out(config: Any) -> Callable[..., Any]:
        kernel = _loader(f"{op}_out")(config)
        return lambda *args, out: kernel(*args, *out)

    return load_op_out


def _unless_tiny(facts: Any, device: Device) -> int:
    return FIRST if facts.rows * facts.dim >= TINY else BEHIND


def _unless_few_rows(facts: Any, device: Device) -> int:
    if facts.dtype is torch.float32:
        return FIRST
    return BEHIND if facts.rows < FEW_ROWS else _unless_tiny(facts, device)


def _implementation(op: str, doc: str, rank: Rank = FIRST) -> Implementation:
    return Implementation(
        op=op,
        backend="cpu",
        rank=measured("cpu", op, rank),
        load=_loader(op),
        load_out=_loader_out(op),
        requires=CPU,
        absent=absent,
        doc=doc,
    )


IMPLEMENTATIONS = (
    _implementation("rms_norm", "one pass, fp32 statistics"),
    _implementation("layer_norm", "one pass, two-pass variance in cache", _unless_few_rows),
    _implementation("group_norm", "channels first or last without a copy, SiLU fused"),
    _implementation("norm_scale_shift", "norm and modulation in one pass"),
    _implementation("residual_gate_norm_scale_shift", "residual, gate, norm and modulation in one pass"),
    _implementation("apply_rope", "any strides, one pass"),
    _implementation("qk_norm_rope", "norm and rotation of q and k in one pass"),
    _implementation("scale_shift", "one pass in fp32"),
    _implementation("gate_residual", "one pass in fp32"),
    _implementation("silu_mul", "one pass, halves or two tensors by stride"),
    _implementation("gelu_tanh", "own polynomial exponential", _unless_tiny),
    _implementation("gelu_mul", "tanh or exact, one pass"),
)
