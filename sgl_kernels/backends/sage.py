"""SageAttention (LOSSY): sage_attn, the 1.x Triton and 2.x CUDA releases, and sage_attn3, Blackwell FP4.

Signatures read from sageattention 1.0.6 (PyPI), the 2.2 sources, and the sageattention3_blackwell folder. All of
them take BHSD ("HND") or BSHD ("NHD"), align causal top-left, and have no mask. Releases 1.x and 3 subtract the
mean of K in the caller's tensor, so they are given a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sgl_kernels.backends._attention import default_scale, last_dim_contiguous, rejects
from sgl_kernels.backends._bugs import bugs_of
from sgl_kernels.backends._order import rank
from sgl_kernels.core.selection.implementation import Fidelity, Implementation
from sgl_kernels.core.selection.requires import HALF, Requires

LOG2_E = 1.4426950408889634


def _load_sage(config: Any) -> Callable[..., Tensor]:
    import inspect

    import sageattention

    returns_lse = "return_lse" in inspect.signature(sageattention.sageattn).parameters  # 2.x and later
    sageattn = sageattention.sageattn

    def run(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
        scale: float | None, window_left: int, window_right: int, softcap: float,
    ) -> Tensor:  # fmt: skip
        # masks, windows, softcap and causal of unequal lengths were turned away
        q, k, v = last_dim_contiguous(q, k, v)
        if not returns_lse:
            k = k.clone()  # 1.x smooths K in place
        return sageattn(q, k, v, tensor_layout="NHD", is_causal=is_causal, sm_scale=default_scale(q, scale))

    return run


def _load_sage_lse(config: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    from sageattention import sageattn

    def run(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
        scale: float | None, window_left: int, window_right: int, softcap: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        q, k, v = last_dim_contiguous(q, k, v)
        out, lse = sageattn(
            q,
            k,
            v,
            tensor_layout="NHD",
            is_causal=is_causal,
            sm_scale=default_scale(q, scale),
            return_lse=True,
        )
        return out, lse  # natural, (B, H, Sq), the mean of K added back by the package

    return run


def _load_sage3(config: Any) -> Callable[..., Tensor]:
    from sageattn3 import sageattn3_blackwell

    def run(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
        scale: float | None, window_left: int, window_right: int, softcap: float,
    ) -> Tensor:  # fmt: skip
        # a mask would be ignored by the package: it was turned away. It has no scale: fold ours into q
        if scale is not None:
            q = q * (scale * q.shape[-1] ** 0.5)
        k = k.transpose(1, 2).contiguous().clone()  # it smooths K in place
        out = sageattn3_blackwell(
            q.transpose(1, 2).contiguous(), k, v.transpose(1, 2).contiguous(), is_causal=is_causal
        )
        return out.transpose(1, 2)

    return run


_CUDA = frozenset({"cuda"})
_SAGE_ARCHS = frozenset(
    {"sm80", "sm86", "sm89", "sm90", "sm120", "sm121"}
)  # 2.x raises ValueError on the others
_SAGE = rejects(head_dims=lambda d: d in (64, 96, 128), head_dim_text="64, 96 or 128")

IMPLEMENTATIONS = (
    Implementation(
        op="attention",
        backend="sage_attn",
        load=_load_sage,
        requires=Requires(
            platforms=_CUDA, archs=_SAGE_ARCHS, packages=("sageattention>=1.0.6,<3",), dtypes=HALF
        ),
        rejects=_SAGE,
        bugs=bugs_of("sage_attn", "attention"),
        rank=rank("sage_attn", "attention"),
        fidelity=Fidelity.LOSSY,
        proof="contract",
        doc="SageAttention 1 and 2: int8 QK, fp16 or fp8 PV",
    ),
    Implementation(
        op="attention_lse",
        backend="sage_attn",
        load=_load_sage_lse,
        requires=Requires(
            platforms=_CUDA, archs=_SAGE_ARCHS, packages=("sageattention>=2.0,<3",), dtypes=HALF
        ),
        rejects=_SAGE,
        bugs=bugs_of("sage_attn", "attention_lse"),
        rank=rank("sage_attn", "attention"),
        fidelity=Fidelity.LOSSY,
        proof="contract",
        doc="SageAttention 2: int8 QK, fp16 or fp8 PV",
    ),
    Implementation(
        op="attention",
        backend="sage_attn3",
        load=_load_sage3,
        requires=Requires(
            platforms=_CUDA,
            archs=frozenset(
                {"sm100", "sm120", "sm121"}
            ),  # built for exactly these: sm_100a does not run on sm103
            packages=("sageattn3",),
            dtypes=HALF,
            install="build the sageattention3_blackwell folder of thu-ml/SageAttention (not on PyPI)",
        ),
        # at 256 and above the package prints a line and runs SDPA
        rejects=rejects(gqa=False, head_dims=lambda d: d in (64, 128), head_dim_text="64 or 128"),
        bugs=bugs_of("sage_attn3", "attention"),
        rank=rank("sage_attn3", "attention"),
        fidelity=Fidelity.LOSSY,
        proof="contract",
        doc="SageAttention 3: FP4 attention on Blackwell",
    ),
)
