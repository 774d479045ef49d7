"""FlashInfer: prefill attention (base-2 lse), RMS norms, rope from a table, gated activations.

Signatures read from flashinfer-python 0.7.2.post1. Its prefill is for one request: a batch is a loop. The detector is
the package's metadata; nothing is imported until bound, and the device is checked first, because its kernels raise on
anything but CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.backends._attention import feature, last_dim_contiguous, natural_lse, rejects, shape
from sgl_kernels.backends._bugs import bugs_of
from sgl_kernels.backends._order import ONLY_WHEN_NAMED, rank
from sgl_kernels.core.device import Device
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.selection.requires import HALF, Requires
from sgl_kernels.core.selection.verdict import Reason, Rejected

HEAD_DIMS = (64, 128, 256)


def _prefill(with_lse: bool) -> Callable[[Any], Callable[..., Any]]:
    def load(config: Any) -> Callable[..., Any]:
        from flashinfer.prefill import single_prefill_with_kv_cache

        def run(
            q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
            scale: float | None, window_left: int, window_right: int, softcap: float,
        ) -> Any:  # fmt: skip
            # masks and right windows were turned away; causal is aligned bottom-right, as in the package
            q, k, v = last_dim_contiguous(q, k, v)
            window_left = min(window_left, q.shape[1] + k.shape[1])
            results = [
                single_prefill_with_kv_cache(
                    q[b], k[b], v[b], causal=is_causal, kv_layout="NHD", sm_scale=scale, window_left=window_left,
                    logits_soft_cap=softcap if softcap > 0 else None, return_lse=with_lse,
                )
                for b in range(q.shape[0])
            ]  # fmt: skip
            if not with_lse:
                return torch.stack(results)
            out = torch.stack([r[0] for r in results])
            return out, natural_lse(torch.stack([r[1] for r in results])).transpose(
                1, 2
            )  # (S, H) to (B, H, S)

        return run

    return load


_plain = rejects(
    causal=("square", "bottom_right"),
    window=True,
    softcap=True,
    head_dims=lambda d: d in HEAD_DIMS,
    head_dim_text="64, 128 or 256",
)


def _rejects_attention(facts: Any) -> Rejected | None:
    if facts.window is not None and facts.window[1] >= 0:
        return feature("a window to the right is not supported")
    if facts.window is not None and facts.sq > facts.sk:
        return feature("a window with more queries than keys leaves rows without keys")
    return _plain(facts)


def _rejects_attention_on(facts: Any, device: Device) -> Rejected | None:
    """Its tensor-core product for Turing is of halves; in bfloat16 the kernel stops with an assertion (mma.cuh)."""
    old = device.capability is not None and device.capability < (8, 0)
    if old and facts.dtype is torch.bfloat16:
        return Rejected(Reason.DTYPE, f"bfloat16 needs capability 8.0 or newer, device is {device.arch}")
    return None


def _load_rms_norm(config: Any) -> Callable[..., Tensor]:
    from flashinfer.norm import rmsnorm

    def run(x: Tensor, weight: Tensor | None, eps: float, weight_offset: float) -> Tensor:
        # a missing weight and an offset were turned away: facts do not tell 1.0 (gemma_rmsnorm) from others
        return rmsnorm(x.reshape(-1, x.shape[-1]), weight, eps=eps).reshape(x.shape)

    return run


def _rejects_rms(facts: Any) -> Rejected | None:
    if facts.weight is None:
        return feature("needs a weight")
    if facts.weight is not facts.dtype:
        return feature(f"the weight must be {str(facts.dtype).removeprefix('torch.')} like x")
    if facts.weight_offset:
        return feature("weight_offset is not supported")
    if facts.rows == 0 or facts.dim % 8:
        return shape("needs rows, and a last dimension that is a multiple of 8")
    return None


def _rms_rank(facts: Any, device: Device) -> int:
    """Behind torch for rows of a head: 788 us against 105 of a fused kernel at 27030x24x128 (sglang 20632)."""
    return rank("flashinfer", "norm")(facts, device) if facts.dim > 256 else ONLY_WHEN_NAMED


def _gated(name: str) -> Callable[[Any], Callable[..., Tensor]]:
    def load(config: Any) -> Callable[..., Tensor]:
        import flashinfer.activation as activation

        silu, tanh, erf = activation.silu_and_mul, activation.gelu_tanh_and_mul, activation.gelu_and_mul
        if name == "silu_mul":

            def run_silu(x: Tensor, up: Tensor | None) -> Tensor:
                return silu(x.contiguous())  # two tensors were turned away

            return run_silu

        def run_gelu(x: Tensor, up: Tensor | None, approximate: str) -> Tensor:
            return (tanh if approximate == "tanh" else erf)(x.contiguous())

        return run_gelu

    return load


def _rejects_gated(facts: Any) -> Rejected | None:
    if not facts.fused:
        return feature("needs gate and up side by side in one tensor")
    if facts.rows == 0 or facts.dim % 8:
        return shape("needs rows, and halves that are a multiple of 8 wide")
    return None


def _load_rope(config: Any) -> Callable[..., Tensor]:
    from flashinfer.rope import apply_rope_with_cos_sin_cache

    def run(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        b, s, h, d = x.shape
        cache = torch.cat((cos.reshape(s, -1), sin.reshape(s, -1)), dim=-1).float()
        positions = torch.arange(s, device=x.device, dtype=torch.int64).repeat(b)
        rows = x.reshape(b * s, h * d)
        # it rotates a query and a key: a key of one head is the cheapest second
        key = rows[:, :d]
        out, _ = apply_rope_with_cos_sin_cache(positions, rows, key, d, cache, is_neox=not interleaved)
        return out.reshape(x.shape)

    return run


def _rejects_rope(facts: Any) -> Rejected | None:
    if facts.batched_table:
        return feature("needs one table for every sequence of the batch")
    if facts.tokens == 0 or facts.heads == 0:
        return shape("empty tensors go to torch")
    if facts.head_dim not in (64, 128, 256):
        return shape(f"head_dim is {facts.head_dim}, needs 64, 128 or 256")
    return None


_REQUIRES = Requires(
    platforms=frozenset({"cuda"}), min_capability=(7, 5), packages=("flashinfer-python>=0.2.6",), dtypes=HALF
)


def _implementation(
    op: str, group: str, load: Any, rejecting: Any, doc: str, ranked: Any = None
) -> Implementation:
    return Implementation(
        op=op,
        backend="flashinfer",
        load=load,
        requires=_REQUIRES,
        rejects=rejecting,
        rejects_on=_rejects_attention_on if group == "attention" else None,
        bugs=bugs_of("flashinfer", op),
        rank=ranked or rank("flashinfer", group),
        proof="contract",
        doc=doc,
    )


IMPLEMENTATIONS = (
    _implementation(
        "attention", "attention", _prefill(False), _rejects_attention, "FlashInfer's prefill kernel"
    ),
    _implementation(
        "attention_lse", "attention", _prefill(True), _rejects_attention, "FlashInfer's prefill kernel"
    ),
    _implementation("rms_norm", "norm", _load_rms_norm, _rejects_rms, "FlashInfer's RMS norm", _rms_rank),
    _implementation("silu_mul", "activation", _gated("silu_mul"), _rejects_gated, "FlashInfer's SwiGLU gate"),
    _implementation("gelu_mul", "activation", _gated("gelu_mul"), _rejects_gated, "FlashInfer's GEGLU gates"),
    _implementation("apply_rope", "rope", _load_rope, _rejects_rope, "FlashInfer's rope from a table"),
)
