"""MLX on Apple GPUs: norms through mx.fast, adaLN and rope through our fused Metal kernels. Off unless asked for.

Two synchronisations per call cost more than a norm saves in most models, so SGLANG_USE_MLX=1 (or naming the backend)
turns it on. mx.fast and fast.metal_kernel read from MLX 0.32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sgl_kernels.backends._attention import feature, shape
from sgl_kernels.backends._bugs import bugs_of
from sgl_kernels.backends._order import rank
from sgl_kernels.core.log import warn_once
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.selection.requires import FLOATS, Requires
from sgl_kernels.core.selection.verdict import Reason, Rejected
from sgl_kernels.core.settings import Settings
from sgl_kernels.ops._modulation import kind

INDEX_LIMIT = 1 << 32  # the Metal kernels count rows and pairs in 32 bits


def _fused() -> Any:
    """The Metal kernels once they have agreed with MLX's own ops on this machine, else those ops."""
    from sgl_kernels.kernels.mlx import metal, ops

    cause = metal.agrees()
    if cause:
        warn_once(
            f"mlx metal {cause}", f"the fused Metal kernels are not used: {cause}; MLX's own ops run instead"
        )
        return ops
    return metal


def _modulation(p: Tensor | None, x: Tensor) -> tuple[Tensor | None, int]:
    """A parameter as a table of rows, and how many consecutive rows of x share one of them."""
    if p is None:
        return None, 1
    how = kind(p, x)
    table = p.reshape(-1, p.shape[-1])
    if how in ("vector", "token"):
        return table, 1
    tokens = x.numel() // (x.shape[-1] * x.shape[0])
    return table, x.shape[1] // p.shape[1] if how == "frame" else tokens


def _paired(modulation: Any, tables: tuple[Any, ...], periods: tuple[int, ...]) -> list[Any]:
    return [None if t is None else modulation(t, p) for t, p in zip(tables, periods, strict=True)]


def _loader(make: Callable[[], Callable[..., Any]]) -> Callable[[Any], Callable[..., Any]]:
    def load(config: Any) -> Callable[..., Any]:
        from sgl_kernels.kernels.mlx.bridge import require_metal

        require_metal()
        return make()

    return load


def _rms_norm() -> Callable[..., Tensor]:
    from sgl_kernels.kernels.mlx import bridge, ops

    def run(x: Tensor, weight: Tensor | None, eps: float, weight_offset: float) -> Tensor:
        def compute(x: Any, weight: Any) -> tuple[Any]:
            return (ops.rms_norm(x, weight, eps, weight_offset),)

        return bridge.cross(compute, x, weight)[0]

    return run


def _layer_norm() -> Callable[..., Tensor]:
    from sgl_kernels.kernels.mlx import bridge, ops

    def run(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        def compute(x: Any, weight: Any, bias: Any) -> tuple[Any]:
            return (ops.layer_norm(x, weight, bias, eps),)

        return bridge.cross(compute, x, weight, bias)[0]

    return run


def _norm_scale_shift() -> Callable[..., Tensor]:
    from sgl_kernels.kernels.mlx import bridge, ops

    fused = _fused()

    def run(
        x: Tensor, scale: Tensor | None, shift: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float,
        norm: str,
    ) -> Tensor:  # fmt: skip
        (scale, scale_period), (shift, shift_period) = _modulation(scale, x), _modulation(shift, x)

        def compute(x: Any, weight: Any, bias: Any, *tables: Any) -> tuple[Any]:
            params = _paired(ops.Modulation, tables, (scale_period, shift_period))
            return (fused.adaln(x, *params, weight, bias, eps, norm),)

        return bridge.cross(compute, x.reshape(-1, x.shape[-1]), weight, bias, scale, shift)[0].reshape(
            x.shape
        )

    return run


def _residual() -> Callable[..., tuple[Tensor, Tensor]]:
    from sgl_kernels.kernels.mlx import bridge, ops

    fused = _fused()

    def run(
        residual: Tensor, x: Tensor, gate: Tensor | None, scale: Tensor | None, shift: Tensor | None,
        weight: Tensor | None, bias: Tensor | None, eps: float, norm: str,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        tables, periods = zip(*(_modulation(p, x) for p in (gate, scale, shift)), strict=True)

        def compute(residual: Any, x: Any, weight: Any, bias: Any, *tables: Any) -> Any:
            params = _paired(ops.Modulation, tables, periods)
            return fused.residual_adaln(residual, x, *params, weight, bias, eps, norm)

        rows = (t.reshape(-1, x.shape[-1]) for t in (residual, x))
        out, total = bridge.cross(compute, *rows, weight, bias, *tables)
        return out.reshape(x.shape), total.reshape(x.shape)

    return run


def _apply_rope() -> Callable[..., Tensor]:
    from sgl_kernels.kernels.mlx import bridge

    fused = _fused()

    def run(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        def compute(x: Any, cos: Any, sin: Any) -> tuple[Any]:
            return (fused.rope(x, cos, sin, interleaved),)

        tables = (t if t.ndim == 3 else t[None] for t in (cos, sin))
        return bridge.cross(compute, x, *tables)[0]

    return run


def _rejects_rows(facts: Any) -> Rejected | None:
    if "broadcast" in (facts.gate, facts.scale, facts.shift):
        return feature("modulation that broadcasts over an inner dimension is not supported")
    if facts.rows * 32 >= INDEX_LIMIT:
        return shape(f"has {facts.rows} rows, needs less than {INDEX_LIMIT // 32}")
    return shape("empty tensors go to torch") if facts.rows == 0 else None


def _rejects_rope(facts: Any) -> Rejected | None:
    if facts.tokens * facts.heads * facts.head_dim >= INDEX_LIMIT:
        return shape("has 2**32 elements or more")
    empty = facts.tokens * facts.heads * facts.rotary_dim == 0
    return shape("empty tensors go to torch") if empty else None


def _asked_for(settings: Settings) -> Rejected | None:
    if settings.apple.use_mlx:
        return None
    return Rejected(Reason.POLICY, "SGLANG_USE_MLX is not on", "export SGLANG_USE_MLX=1")


_implementation = functools.partial(
    Implementation,
    backend="mlx",
    requires=Requires(platforms=frozenset({"mps"}), packages=("mlx>=0.32",), dtypes=FLOATS),
    enabled=_asked_for,
    proof="simulated",
)

IMPLEMENTATIONS = tuple(
    _implementation(
        op=op,
        load=_loader(make),
        rejects=_rejects_rope if op == "apply_rope" else _rejects_rows,
        bugs=bugs_of("mlx", op),
        rank=rank("mlx", "rope" if op == "apply_rope" else "norm"),
        doc=doc,
    )
    for op, make, doc in (
        ("rms_norm", _rms_norm, "mx.fast.rms_norm"),
        ("layer_norm", _layer_norm, "mx.fast.layer_norm"),
        ("norm_scale_shift", _norm_scale_shift, "our Metal kernel: norm and modulation in one launch"),
        (
            "residual_gate_norm_scale_shift",
            _residual,
            "our Metal kernel: residual, gate, norm and modulation",
        ),
        ("apply_rope", _apply_rope, "our Metal kernel: rope from a table"),
    )
)
