"""hf_kernels: FlashAttention built ahead of time on the Hugging Face Hub, through the `kernels` package.

kernels 0.17: get_kernel(repo_id, version=...), a number since 0.12, downloads once into the Hub's cache and imports
it. The repository `kernels-community/flash-attn2` keeps FlashAttention 2's signature; `flash-attn3`, FlashAttention
3's, whose older builds return the lse unasked and know no keyword for it.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from sgl_kernels.backends._attention import rejects
from sgl_kernels.backends._bugs import bugs_of
from sgl_kernels.backends._order import rank
from sgl_kernels.backends.flash_attn import adapter, dense_adapter
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.selection.requires import HALF, Requires

REPOSITORY = {True: "kernels-community/flash-attn3", False: "kernels-community/flash-attn2"}


def _load(op: str) -> Callable[[Any], Callable[..., Any]]:
    def load(config: Any) -> Callable[..., Any]:
        import torch
        from kernels import get_kernel

        options = dict(config or ())
        hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
        repository = str(options.get("repository", REPOSITORY[hopper]))
        module = get_kernel(repository, version=int(options.get("version", 1)))
        if op == "attention_varlen":
            return adapter(op, module.flash_attn_func, module.flash_attn_varlen_func)
        attend, lse = module.flash_attn_func, op == "attention_lse"
        keywords = (
            {"return_attn_probs": True} if lse and "return_attn_probs" in signature(attend).parameters else {}
        )
        return dense_adapter(
            lambda q, k, v, scale, causal, window, softcap: attend(
                q, k, v, softmax_scale=scale, causal=causal, window_size=window, softcap=softcap, **keywords
            ),
            lse,
        )

    return load


IMPLEMENTATIONS = tuple(
    Implementation(
        op=op,
        backend="hf_kernels",
        load=_load(op),
        requires=Requires(
            platforms=frozenset({"cuda"}), min_capability=(8, 0), packages=("kernels>=0.12",), dtypes=HALF
        ),
        rejects=rejects(
            causal=("square", "bottom_right"),
            window=True,
            softcap=True,
            head_dims=lambda d: d % 8 == 0 and d <= 256,
            head_dim_text="a multiple of 8, at most 256",
        ),
        bugs=bugs_of("hf_kernels", op),
        options={
            "repository": "Hub repository with FlashAttention's functions",
            "version": "major version of the repository",
        },
        rank=rank("hf_kernels", "attention"),
        proof="contract",
        doc="FlashAttention prebuilt on the Hugging Face Hub",
    )
    for op in ("attention", "attention_lse", "attention_varlen")
)
