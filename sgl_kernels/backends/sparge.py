"""SpargeAttention (LOSSY): block-sparse attention on quantised scores, training-free, from thu-ml/SpargeAttn.

Signature read from the sources at bfd980b: spas_sage2_attn_meansim_topk_cuda(q, k, v, attn_mask=None, dropout_p=0.0,
is_causal=False, scale=None, smooth_k=True, simthreshd1=-0.1, cdfthreshd=None, topk=0.5, pvthreshd=50,
attention_sink=False, tensor_layout="HND", output_dtype=float16, return_sparsity=False); a branch adds return_lse and
has another topk, so topk is given. A mask is ignored, is_causal reaches the choice of blocks but not the kernel
inside the diagonal ones, and it sets the current device. Of the keys, the share TOPK is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sgl_kernels.backends._attention import default_scale, feature, rejects, shape
from sgl_kernels.backends._bugs import bugs_of
from sgl_kernels.backends._order import rank
from sgl_kernels.core.selection.implementation import Fidelity, Implementation
from sgl_kernels.core.selection.requires import HALF, Requires
from sgl_kernels.core.selection.verdict import Rejected

TOPK = 0.5  # the share its own examples use
MIN_QUERIES = 128


def _load(config: Any) -> Callable[..., Tensor]:
    from spas_sage_attn import spas_sage2_attn_meansim_topk_cuda

    def run(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
        scale: float | None, window_left: int, window_right: int, softcap: float,
    ) -> Tensor:  # fmt: skip
        # masks, causal, windows and softcap were turned away
        out: Tensor = spas_sage2_attn_meansim_topk_cuda(
            q.transpose(1, 2).contiguous(), k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous(),
            is_causal=False, scale=default_scale(q, scale), topk=TOPK, tensor_layout="HND",
        )  # fmt: skip
        return out.transpose(1, 2)

    return run


_plain = rejects(causal=(), gqa=False, head_dims=lambda d: d in (64, 128), head_dim_text="64 or 128")


def _rejects(facts: Any) -> Rejected | None:
    if facts.causal:
        return feature("causal leaks inside the diagonal blocks of the package's kernel")
    if facts.sq < MIN_QUERIES or facts.sk < MIN_QUERIES:
        return shape(f"has {facts.sq} queries and {facts.sk} keys, needs {MIN_QUERIES} of each")
    return _plain(facts)


IMPLEMENTATIONS = (
    Implementation(
        op="attention",
        backend="sparge_attn",
        load=_load,
        requires=Requires(
            platforms=frozenset({"cuda"}),
            archs=frozenset({"sm80", "sm86", "sm87", "sm89", "sm90"}),
            packages=("spas_sage_attn",),
            dtypes=HALF,
            install="build https://github.com/thu-ml/SpargeAttn (not on PyPI)",
        ),
        rejects=_rejects,
        bugs=bugs_of("sparge_attn", "attention"),
        rank=rank("sparge_attn", "attention"),
        fidelity=Fidelity.LOSSY,
        launches_on_current_device=True,  # it calls torch.cuda.set_device and leaves it so
        proof="contract",
        doc="SpargeAttention: half of the key blocks, int8 scores, fp8 values",
    ),
)
