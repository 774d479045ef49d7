"""zentorch, AMD's plug-in for EPYC processors: its AVX-512 flash attention.

Schema read from zentorch 2.13.0.2: zentorch_sdpa(query, key, value, dropout_p=0.0, is_causal=False, *, attn_mask=None,
scale=None, zentorch_op_name=...) -> (out, lse), BHSD with any strides, causal top-left, masks additive. Where a dtype
has no kernel of its own it calls torch's, so those dtypes are turned away here. Its release must match torch's.
It imports and answers without AVX-512 as well, but with torch's kernel: on a Zen 3 core all of 9 calls (three shapes
in three dtypes) were equal to torch's to the bit and took its time, 0.97 to 1.04x. Hence the architectures below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.backends._attention import feature, rejects, without_hidden
from sgl_kernels.backends._bugs import bugs_of
from sgl_kernels.backends._order import rank
from sgl_kernels.core.device import Device
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.selection.requires import Requires
from sgl_kernels.core.selection.verdict import Reason, Rejected


def _additive(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """A mask as the op takes it: 4-D and additive, in float32 or the dtype of q."""
    if mask is None:
        return None
    if mask.dtype is torch.bool:
        mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, float("-inf"))
    elif mask.dtype is not q.dtype:
        mask = mask.float()
    return mask[(None,) * (4 - mask.ndim)]


def _load(config: Any) -> Callable[..., Tensor]:
    import zentorch  # noqa: F401 - registers the op

    sdpa = torch.ops.zentorch.zentorch_sdpa.default

    def run(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
        scale: float | None, window_left: int, window_right: int, softcap: float,
    ) -> Tensor:  # fmt: skip
        # windows, softcap, bottom-right calls of unequal lengths and a mask with causal were turned away
        if scale is not None and scale <= 0:  # it scales after masking: -inf * 0 is NaN, -inf * -1 is inf
            q, scale = (-q, -scale) if scale < 0 else (q * 0, None)
        k, v = without_hidden(k, v, attn_mask)
        out: Tensor = sdpa(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), 0.0, is_causal,
            attn_mask=_additive(attn_mask, q), scale=scale,
        )[0].transpose(1, 2)  # fmt: skip
        # its kernel takes a NaN query for a row without keys and answers 0
        return torch.where(q.isnan().any(-1, keepdim=True), float("nan"), out)

    return run


_plain = rejects(masks=("bool", "float"), causal=("square", "top_left"))


def _rejects(facts: Any) -> Rejected | None:
    if facts.mask and facts.causal:
        return feature("a mask together with causal is not supported")
    return _plain(facts)


def _rejects_on(facts: Any, device: Device) -> Rejected | None:
    processor = device.processor or device.arch  # what holds our kernels down does not hold zentorch's
    if facts.dtype is torch.bfloat16 and processor != "avx512bf16":
        return Rejected(Reason.CAPABILITY, f"bfloat16 needs avx512bf16, the processor has {processor}")
    return None


IMPLEMENTATIONS = (
    Implementation(
        op="attention",
        backend="zentorch",
        load=_load,
        requires=Requires(
            platforms=frozenset({"cpu"}),
            archs=frozenset({"avx512", "avx512bf16"}),
            packages=("zentorch>=2.4",),
            dtypes=frozenset({torch.float32, torch.bfloat16}),
            install="pip install the zentorch release that matches torch, such as 'zentorch==2.13.*'",
        ),
        rejects=_rejects,
        rejects_on=_rejects_on,
        bugs=bugs_of("zentorch", "attention"),
        rank=rank("zentorch", "attention"),
        proof="contract",
        doc="AMD's AVX-512 flash attention for EPYC, from the plug-in zentorch",
    ),
)
