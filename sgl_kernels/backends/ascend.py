"""Ascend NPUs through torch_npu: fused attention, RMS and group norm, rotary, SwiGLU, GELU.

Op schemas read from the YAML that the torch_npu 2.13.0 wheel ships. Its masks say True = hide. A torch_npu that is
installed without CANN breaks its own import: that is a load failure here, and torch serves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.backends._attention import default_scale, feature, rejects, shape, without_hidden
from sgl_kernels.backends._bugs import bugs_of
from sgl_kernels.backends._order import rank
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.selection.requires import FLOATS, HALF, Requires
from sgl_kernels.core.selection.verdict import Rejected

LEFT_UP_CAUSAL, RIGHT_DOWN_CAUSAL = 2, 3
COMPRESSED = 2048  # the causal modes take one triangular mask of this size for any length


def _hidden(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """The op's mask: bool (B, 1 or H, Sq, Sk), contiguous, True = hide. It does not broadcast its last two."""
    heads = mask.shape[-3] if mask.ndim >= 3 else 1
    return (~mask.expand(q.shape[0], heads, q.shape[1], k.shape[1])).contiguous()


def _fused(with_lse: bool) -> Callable[[Any], Callable[..., Any]]:
    def load(config: Any) -> Callable[..., Any]:
        import torch_npu

        attention = torch_npu.npu_fusion_attention

        def run(
            q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
            scale: float | None, window_left: int, window_right: int, softcap: float,
        ) -> Any:  # fmt: skip
            # float masks, windows, softcap, and a mask together with causal were turned away
            hidden, mode = None, 0
            if attn_mask is not None:
                k, v = without_hidden(k, v, attn_mask)
                hidden = _hidden(attn_mask, q, k)
            elif is_causal:
                mode = RIGHT_DOWN_CAUSAL if causal_alignment == "bottom_right" else LEFT_UP_CAUSAL
                hidden = torch.ones(COMPRESSED, COMPRESSED, dtype=torch.bool, device=q.device).triu(1)
            out, row_max, row_sum, *_ = attention(
                q.contiguous(), k.contiguous(), v.contiguous(), q.shape[2], "BSND", atten_mask=hidden,
                scale=default_scale(q, scale), keep_prob=1.0, sparse_mode=mode,
            )  # fmt: skip
            lse = row_max[..., 0] + torch.log(row_sum[..., 0])  # (B, H, Sq, 8), eight equal columns
            if attn_mask is not None and hidden is not None:  # a row without keys comes out uniform
                empty = hidden.all(-1).expand(lse.shape)
                out = out.masked_fill(empty.transpose(1, 2)[..., None], 0.0)
                lse = lse.masked_fill(empty, float("-inf"))
            return (out, lse.float()) if with_lse else out

        return run

    return load


_plain = rejects(
    masks=("bool",),
    causal=("square", "bottom_right", "top_left"),
    head_dims=lambda d: d % 8 == 0 and d <= 512,
    head_dim_text="a multiple of 8, at most 512",
)


def _rejects_attention(facts: Any) -> Rejected | None:
    if facts.mask and facts.causal:
        return feature("a mask together with causal is not supported")
    return _plain(facts)


def _load_rms_norm(config: Any) -> Callable[..., Tensor]:
    import torch_npu

    def run(x: Tensor, weight: Tensor | None, eps: float, weight_offset: float) -> Tensor:
        # an offset was turned away
        gamma = torch.ones(x.shape[-1], dtype=x.dtype, device=x.device) if weight is None else weight
        return torch_npu.npu_rms_norm(x, gamma, epsilon=eps)[0]

    return run


def _rejects_rms(facts: Any) -> Rejected | None:
    if facts.weight is not None and facts.weight is not facts.dtype:
        return feature("the weight must have the dtype of x")
    if facts.weight_offset:
        return feature("weight_offset is not supported")
    return shape("empty tensors go to torch") if facts.rows == 0 else None


def _load_group_norm(config: Any) -> Callable[..., Tensor]:
    import torch_npu

    def run(
        x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str
    ) -> Tensor:
        out: Tensor = torch_npu.npu_group_norm_silu(x, weight, bias, num_groups, eps)[0]
        return out  # only with SiLU: see rejects

    return run


def _rejects_group(facts: Any) -> Rejected | None:
    if facts.activation != "silu":
        return feature("the fused op always applies SiLU")
    if facts.weight is not facts.dtype or facts.bias is not facts.dtype:
        return feature("needs a weight and a bias of the dtype of x")
    if facts.channels_last:
        return feature("channels-last input would lose its format")
    return shape("empty tensors go to torch") if facts.batch * facts.positions == 0 else None


def _load_rope(config: Any) -> Callable[..., Tensor]:
    import torch_npu

    def run(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        # the op takes full-width tables, (1 or B, S, 1, D), and one dtype: the wider of x and the tables, so that
        # float32 tables are not rounded and the result is rounded once
        wide = torch.promote_types(x.dtype, cos.dtype)

        def table(t: Tensor) -> Tensor:
            full = t.repeat_interleave(2, -1) if interleaved else torch.cat((t, t), -1)
            return (full if full.ndim == 3 else full[None]).unsqueeze(2).to(wide)

        mode = "interleave" if interleaved else "half"
        rotated = torch_npu.npu_rotary_mul(x.contiguous().to(wide), table(cos), table(sin), rotary_mode=mode)
        return rotated.to(x.dtype)

    return run


def _rejects_rope(facts: Any) -> Rejected | None:
    if facts.rotary_dim != facts.head_dim:
        return feature("partial rotation is not supported")
    if facts.head_dim >= 896:
        return shape(f"head_dim is {facts.head_dim}, needs less than 896")
    return shape("empty tensors go to torch") if facts.tokens * facts.heads == 0 else None


def _load_silu_mul(config: Any) -> Callable[..., Tensor]:
    import torch_npu

    def run(x: Tensor, up: Tensor | None) -> Tensor:
        return torch_npu.npu_swiglu(x if up is None else torch.cat((x, up), -1), dim=-1)

    return run


def _load_gelu_tanh(config: Any) -> Callable[..., Tensor]:
    import torch_npu

    def run(x: Tensor) -> Tensor:
        return torch_npu.npu_gelu(x, approximate="tanh")

    return run


def _rejects_empty(facts: Any) -> Rejected | None:
    return shape("empty tensors go to torch") if facts.rows == 0 else None


def _implementation(op: str, group: str, load: Any, rejecting: Any, dtypes: Any, doc: str) -> Implementation:
    return Implementation(
        op=op,
        backend="ascend",
        load=load,
        requires=Requires(
            platforms=frozenset({"npu"}),
            packages=("torch-npu",),
            dtypes=dtypes,
            install="install CANN, then pip install the torch-npu of your torch release",
        ),
        rejects=rejecting,
        bugs=bugs_of("ascend", op),
        rank=rank("ascend", group),
        proof="contract",
        doc=doc,
    )


IMPLEMENTATIONS = (
    _implementation(
        "attention", "attention", _fused(False), _rejects_attention, HALF, "npu_fusion_attention"
    ),
    _implementation(
        "attention_lse", "attention", _fused(True), _rejects_attention, HALF, "npu_fusion_attention"
    ),
    _implementation("rms_norm", "norm", _load_rms_norm, _rejects_rms, FLOATS, "npu_rms_norm"),
    _implementation("group_norm", "norm", _load_group_norm, _rejects_group, FLOATS, "npu_group_norm_silu"),
    _implementation("apply_rope", "rope", _load_rope, _rejects_rope, FLOATS, "npu_rotary_mul"),
    _implementation("silu_mul", "activation", _load_silu_mul, _rejects_empty, FLOATS, "npu_swiglu"),
    _implementation("gelu_tanh", "activation", _load_gelu_tanh, _rejects_empty, FLOATS, "npu_gelu"),
)
