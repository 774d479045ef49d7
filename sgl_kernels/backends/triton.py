"""Our Triton kernels: one source for CUDA, ROCm and XPU, and for tests in Triton's interpreter on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from sgl_kernels.backends import _triton_rows
from sgl_kernels.backends._attention import without_hidden
from sgl_kernels.backends._order import ONLY_WHEN_NAMED, OURS
from sgl_kernels.core.device import Device
from sgl_kernels.core.selection.implementation import Fidelity, Implementation, Place
from sgl_kernels.core.selection.packages import VersionOf
from sgl_kernels.core.selection.requires import FLOATS, HALF, Requires
from sgl_kernels.core.selection.verdict import Reason, Rejected
from sgl_kernels.kernels.triton import configs
from sgl_kernels.ops.attention.reference import sequences

INTERPRETER_VARIABLE = "TRITON_INTERPRET"
MIN_TRITON = (3, 4)  # older ones fail in the interpreter on bounds that are tensors, and know no sm_120

# Ranks. Fused ops save passes over memory that eager torch makes, so they go first on a GPU. Where torch has one kernel
# for the whole op, nobody has measured ours to be faster: it stays behind the floor. Vendor kernels are above FUSED.
FUSED, BEHIND, INTERPRETED = OURS, ONLY_WHEN_NAMED, -100


def is_interpreted() -> bool:
    """Whether Triton runs kernels on CPU tensors in this process: its own variable, asked when a call is bound."""
    return os.environ.get(INTERPRETER_VARIABLE, "").lower() in ("1", "true", "yes", "on", "y")


class _GpuOrInterpreter(Requires):
    """Runs on a GPU. The one exception, for tests: CPU tensors while TRITON_INTERPRET=1 is set."""

    __slots__ = ()

    def rejects(self, dtype: torch.dtype, device: Device, version_of: VersionOf) -> Rejected | None:
        if device.platform == "cpu" and is_interpreted():
            device = Device("cuda", "sm80", (8, 0))
        return Requires.rejects(self, dtype, device, version_of)


def gpu_or_interpreter(dtypes: frozenset[torch.dtype]) -> Requires:
    return _GpuOrInterpreter(
        platforms=frozenset({"cuda", "rocm", "xpu"}),
        packages=("triton",),
        dtypes=dtypes,
        install="pip install triton",
    )


def tuned_for(device: Device) -> str:
    """The row set of the tuning table for a device; "interpreter" on the CPU."""
    if device.platform == "rocm":
        return "rdna" if device.arch.startswith(("gfx10", "gfx11", "gfx12")) else "cdna"
    if device.platform != "cuda":
        return "xpu" if device.platform == "xpu" else "interpreter"
    major, minor = device.capability or (8, 0)
    known = {8: "sm80" if minor == 0 else "sm86", 9: "sm90", 10: "sm100", 12: "sm120"}
    return known.get(major, "sm86")


def rejects_old_gpu(facts: Any, device: Device) -> Rejected | None:
    if device.platform == "cuda" and device.capability is not None and device.capability < (8, 0):
        found = f"{device.capability[0]}.{device.capability[1]}"
        return Rejected(Reason.CAPABILITY, f"needs capability 8.0 or newer, device is {found}")
    return None


def _rejects_wide_heads(f: Any, device: Device) -> Rejected | None:
    rejected = rejects_old_gpu(f, device)
    if rejected is None and _attention_configs(f, device)[0] is None:
        kind = str(f.dtype).removeprefix("torch.")
        return Rejected(
            Reason.SHAPE, f"no tile fits the registers of {device} at {kind} and head dim above 128"
        )
    return rejected


_too_many_rows = _triton_rows.rejects_beyond(_triton_rows.of_attention)


def _rejects_attention(f: Any) -> Rejected | None:
    if max(f.head_dim, f.head_dim_v) > configs.MAX_HEAD_DIM:
        return Rejected(
            Reason.SHAPE, f"head dims are at most {configs.MAX_HEAD_DIM}, got {f.head_dim} and {f.head_dim_v}"
        )
    return _too_many_rows(f)


def _rejects_int8(f: Any) -> Rejected | None:
    if f.softcap:
        return Rejected(Reason.FEATURE, "softcap is not invariant to the mean that is taken out of k")
    return _rejects_attention(f)


# ------------------------------------------------------------ loading


def _kernels() -> Any:
    """The kernel modules; the only place that imports Triton."""
    import triton

    found = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if found < MIN_TRITON:
        wanted = ".".join(map(str, MIN_TRITON))
        raise ImportError(f"triton is {triton.__version__}, needs {wanted} or newer: pip install -U triton")
    from sgl_kernels.kernels import triton as package
    from sgl_kernels.kernels.triton import (  # noqa: F401 - bound as attributes of the package
        activation,
        attention,
        attention_int8,
        group_norm,
        modulate,
        norm,
        rope,
    )

    return package


def chosen_tile(config: Any, kind: type, default: Any) -> Any:
    """The config of the selection: an object, the JSON of a tuning record, or none."""
    if isinstance(config, Mapping):
        return kind(**config)
    return default if config is None else config


def _load_attention(config: Any) -> Callable[..., Any]:
    attend = _kernels().attention.attention
    config = chosen_tile(config, configs.AttentionConfig, configs.INTERPRETER)

    def run(q, k, v, attn_mask, is_causal, causal_alignment, scale, window_left, window_right, softcap):
        if not config.guards_v:
            k, v = without_hidden(k, v, attn_mask)
        return attend(
            q, k, v, attn_mask=attn_mask, is_causal=is_causal, causal_alignment=causal_alignment, scale=scale,
            window_left=window_left, window_right=window_right, softcap=softcap, write_lse=False, config=config,
        )[0]  # fmt: skip

    return run


def _load_attention_lse(config: Any) -> Callable[..., Any]:
    attend = _kernels().attention.attention
    config = chosen_tile(config, configs.AttentionConfig, configs.INTERPRETER)

    def run(q, k, v, attn_mask, is_causal, causal_alignment, scale, window_left, window_right, softcap):
        if not config.guards_v:
            k, v = without_hidden(k, v, attn_mask)
        return attend(
            q, k, v, attn_mask=attn_mask, is_causal=is_causal, causal_alignment=causal_alignment, scale=scale,
            window_left=window_left, window_right=window_right, softcap=softcap, write_lse=True, config=config,
        )  # fmt: skip

    return run


def _load_attention_varlen(config: Any) -> Callable[..., Any]:
    attend = _kernels().attention.attention_varlen
    config = chosen_tile(config, configs.AttentionConfig, configs.INTERPRETER)

    def run(
        q, k, v, cu_q, cu_k, max_seqlen_q, max_seqlen_k, is_causal, scale, window_left, window_right, softcap
    ):
        if cu_q.device.type == "cpu":  # in the interpreter; on a device nobody waits for the lengths
            sequences(cu_q, cu_k, q, k, max_seqlen_q, max_seqlen_k)
        return attend(
            q, k, v, cu_q, cu_k, max_seqlen_q, max_seqlen_k, is_causal=is_causal, scale=scale,
            window_left=window_left, window_right=window_right, softcap=softcap, config=config,
        )  # fmt: skip

    return run


def _load_attention_int8(config: Any) -> Callable[..., Any]:
    attend = _kernels().attention_int8.attention_int8
    config = chosen_tile(config, configs.AttentionConfig, configs.INTERPRETER)

    def run(q, k, v, attn_mask, is_causal, causal_alignment, scale, window_left, window_right, softcap):
        if not config.guards_v:
            k, v = without_hidden(k, v, attn_mask)
        # softcap is 0 here: _rejects_int8
        return attend(
            q, k, v, attn_mask=attn_mask, is_causal=is_causal, causal_alignment=causal_alignment, scale=scale,
            window_left=window_left, window_right=window_right, config=config,
        )  # fmt: skip

    return run


def _load_rms_norm(config: Any) -> Callable[..., Any]:
    rms_norm = _kernels().norm.rms_norm
    config = chosen_tile(config, configs.NormConfig, configs.norm("interpreter", 0))

    def run(x, weight, eps, weight_offset):
        return rms_norm(x, weight, eps, weight_offset, config=config)

    return run


def _load_layer_norm(config: Any) -> Callable[..., Any]:
    layer_norm = _kernels().norm.layer_norm
    config = chosen_tile(config, configs.NormConfig, configs.norm("interpreter", 0))

    def run(x, weight, bias, eps):
        return layer_norm(x, weight, bias, eps, config=config)

    return run


def _load_norm_scale_shift(config: Any) -> Callable[..., Any]:
    norm_scale_shift = _kernels().norm.norm_scale_shift
    config = chosen_tile(config, configs.NormConfig, configs.norm("interpreter", 0))

    def run(x, scale, shift, weight, bias, eps, norm):
        return norm_scale_shift(x, scale, shift, weight, bias, eps, norm, config=config)

    return run


def _load_residual(config: Any) -> Callable[..., Any]:
    fused = _kernels().norm.residual_gate_norm_scale_shift
    config = chosen_tile(config, configs.NormConfig, configs.norm("interpreter", 0))

    def run(residual, x, gate, scale, shift, weight, bias, eps, norm):
        return fused(residual, x, gate, scale, shift, weight, bias, eps, norm, config=config)

    return run


def _load_group_norm(config: Any) -> Callable[..., Any]:
    group_norm = _kernels().group_norm.group_norm
    config = chosen_tile(config, configs.GroupNormConfig, configs.group_norm("interpreter"))

    def run(x, num_groups, weight, bias, eps, activation):
        return group_norm(x, num_groups, weight, bias, eps, activation, config=config)

    return run


def _load_apply_rope(config: Any) -> Callable[..., Any]:
    apply_rope = _kernels().rope.apply_rope
    config = chosen_tile(config, configs.TileConfig, configs.tile("interpreter"))

    def run(x, cos, sin, interleaved):
        return apply_rope(x, cos, sin, interleaved, config=config)

    return run


def _load_qk_norm_rope(config: Any) -> Callable[..., Any]:
    qk_norm_rope = _kernels().rope.qk_norm_rope
    config = chosen_tile(config, configs.TileConfig, configs.tile("interpreter"))

    def run(q, k, q_weight, k_weight, cos, sin, eps, interleaved):
        return qk_norm_rope(q, k, q_weight, k_weight, cos, sin, eps, interleaved, config=config)

    return run


def _load_scale_shift(config: Any) -> Callable[..., Any]:
    scale_shift = _kernels().modulate.scale_shift
    config = chosen_tile(config, configs.TileConfig, configs.tile("interpreter"))

    def run(x, scale, shift):
        return scale_shift(x, scale, shift, config=config)

    return run


def _load_gate_residual(config: Any) -> Callable[..., Any]:
    gate_residual = _kernels().modulate.gate_residual
    config = chosen_tile(config, configs.TileConfig, configs.tile("interpreter"))

    def run(residual, x, gate):
        return gate_residual(residual, x, gate, config=config)

    return run


def _load_silu_mul(config: Any) -> Callable[..., Any]:
    silu_mul = _kernels().activation.silu_mul
    config = chosen_tile(config, configs.TileConfig, configs.tile("interpreter"))

    def run(x, up):
        return silu_mul(x, up, config=config)

    return run


def _load_gelu_tanh(config: Any) -> Callable[..., Any]:
    gelu_tanh = _kernels().activation.gelu_tanh
    config = chosen_tile(config, configs.TileConfig, configs.tile("interpreter"))

    def run(x):
        return gelu_tanh(x, config=config)

    return run


def _load_gelu_mul(config: Any) -> Callable[..., Any]:
    gelu_mul = _kernels().activation.gelu_mul
    config = chosen_tile(config, configs.TileConfig, configs.tile("interpreter"))

    def run(x, up, approximate):
        return gelu_mul(x, up, approximate, config=config)

    return run


# ------------------------------------------------------------ declaring


def _attention_configs(f: Any, device: Device) -> tuple[configs.AttentionConfig | None, ...]:
    masked = bool(f.softcap or getattr(f, "mask", ""))
    return (configs.attention(tuned_for(device), f.dtype, f.head_dim, f.head_dim_v, masked=masked),)


def _int8_configs(f: Any, device: Device) -> tuple[configs.AttentionConfig | None, ...]:
    return (
        configs.attention_int8(tuned_for(device), f.dtype, f.head_dim, f.head_dim_v, masked=bool(f.mask)),
    )


def _norm_configs(f: Any, device: Device) -> tuple[configs.NormConfig, ...]:
    return (configs.norm(tuned_for(device), f.dim),)


def _group_configs(f: Any, device: Device) -> tuple[configs.GroupNormConfig, ...]:
    return (configs.group_norm(tuned_for(device)),)


def _tile_configs(f: Any, device: Device) -> tuple[configs.TileConfig, ...]:
    return (configs.tile(tuned_for(device)),)


def _rank(on_gpu: int) -> Callable[[Any, Device], int]:
    place = Place(on_gpu, "fused in one pass; torch eager takes three to six") if on_gpu > 0 else on_gpu
    return lambda f, device: INTERPRETED if device.platform == "cpu" else place


def _attention_rank(f: Any, device: Device) -> int:
    """Above the floor only where torch has no fused kernel and would hold the scores in memory."""
    if device.platform == "cpu":
        return INTERPRETED
    unfused = f.softcap or f.window is not None or f.causal == "bottom_right"
    return Place(FUSED, "torch would hold the scores in memory") if unfused else BEHIND


def _implementation(
    op: str, load: Any, make_configs: Any, rank: Any, rejects: Any, rejects_on: Any = rejects_old_gpu
) -> Implementation:
    return Implementation(
        op=op, backend="triton", load=load, requires=gpu_or_interpreter(FLOATS), rejects=rejects, rejects_on=rejects_on,
        rank=rank, configs=make_configs, launches_on_current_device=True, proof="interpreted, compiled",
        doc="our Triton kernel: CUDA, ROCm, XPU",
    )  # fmt: skip


def _attention(op: str, load: Any, rank: Any) -> Implementation:
    return _implementation(op, load, _attention_configs, rank, _rejects_attention, _rejects_wide_heads)


def _rowwise(
    op: str, load: Any, make_configs: Any, rank: Any, rows_of: Any = _triton_rows.of_rows
) -> Implementation:
    return _implementation(op, load, make_configs, rank, _triton_rows.rejects_beyond(rows_of))


IMPLEMENTATIONS = (
    _attention("attention", _load_attention, _attention_rank),
    _attention("attention_lse", _load_attention_lse, _rank(FUSED)),
    _attention("attention_varlen", _load_attention_varlen, _rank(FUSED)),
    _rowwise("rms_norm", _load_rms_norm, _norm_configs, _rank(FUSED)),
    _rowwise("layer_norm", _load_layer_norm, _norm_configs, _rank(BEHIND)),
    _rowwise("norm_scale_shift", _load_norm_scale_shift, _norm_configs, _rank(FUSED)),
    _rowwise("residual_gate_norm_scale_shift", _load_residual, _norm_configs, _rank(FUSED)),
    _rowwise("group_norm", _load_group_norm, _group_configs, _rank(FUSED), _triton_rows.of_groups),
    _rowwise("apply_rope", _load_apply_rope, _tile_configs, _rank(FUSED), _triton_rows.of_heads),
    _rowwise("qk_norm_rope", _load_qk_norm_rope, _tile_configs, _rank(FUSED), _triton_rows.of_heads),
    _rowwise("scale_shift", _load_scale_shift, _tile_configs, _rank(FUSED)),
    _rowwise("gate_residual", _load_gate_residual, _tile_configs, _rank(FUSED)),
    _rowwise("silu_mul", _load_silu_mul, _tile_configs, _rank(FUSED)),
    _rowwise("gelu_tanh", _load_gelu_tanh, _tile_configs, _rank(BEHIND)),
    _rowwise("gelu_mul", _load_gelu_mul, _tile_configs, _rank(FUSED)),
    Implementation(
        op="attention", backend="triton_int8", load=_load_attention_int8, requires=gpu_or_interpreter(HALF),
        rejects=_rejects_int8, rejects_on=_rejects_wide_heads, rank=_rank(BEHIND), fidelity=Fidelity.LOSSY,
        configs=_int8_configs, launches_on_current_device=True, proof="interpreted, compiled",
        doc="our Triton kernel with int8 scores, K without its mean",
    ),
)  # fmt: skip
