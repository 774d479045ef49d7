"""AITER, AMD's kernel library for ROCm: attention, RMS and layer norm, group norm.

Signatures read from amd-aiter 0.1.7 and the sources at e4048607. PyPI's `aiter` is an unrelated package of
asynchronous iterators, and importing the real one builds kernels, so presence is asked of the distribution
amd-aiter or of the submodules that only the real one has, never by importing.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.backends._attention import feature, last_dim_contiguous, rejects, shape
from sgl_kernels.backends._bugs import bugs_of
from sgl_kernels.backends._order import rank
from sgl_kernels.core.device import Device
from sgl_kernels.core.implementation import Implementation
from sgl_kernels.core.packages import VersionOf, installed_version
from sgl_kernels.core.requires import HALF, Requires
from sgl_kernels.core.settings import Settings
from sgl_kernels.core.verdict import Reason, Rejected

INSTALL = "build https://github.com/ROCm/aiter (PyPI's 'aiter' is another package)"


def _has_amds_folders() -> bool:
    """Whether the `aiter` on the path has the folders that only AMD's has; a source build may lack the metadata."""
    spec = importlib.util.find_spec("aiter")
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    finder = importlib.machinery.PathFinder.find_spec
    return bool(roots) and all(finder(f"aiter.{part}", roots) is not None for part in ("ops", "jit"))


class _Amds(Requires):
    """The requirements, and that `aiter` is AMD's."""

    __slots__ = ()

    def rejects(self, dtype: torch.dtype, device: Device, version_of: VersionOf) -> Rejected | None:
        rejected = Requires.rejects(self, dtype, device, version_of)
        if rejected is not None or version_of("amd-aiter") is not None:
            return rejected
        if version_of("aiter") is None:
            return Rejected(Reason.PACKAGE, "amd-aiter is not installed", INSTALL)
        if version_of is installed_version and _has_amds_folders():
            return None
        return Rejected(
            Reason.PACKAGE, "the installed 'aiter' is the async iterator package, not AMD's", INSTALL
        )


def _attention(with_lse: bool) -> Callable[[Any], Callable[..., Any]]:
    def load(config: Any) -> Callable[..., Any]:
        import inspect

        from aiter.ops.mha import flash_attn_func

        sides = len(
            inspect.signature(flash_attn_func).parameters["window_size"].default
        )  # 3 since sinks exist

        def run(
            q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, causal_alignment: str,
            scale: float | None, window_left: int, window_right: int, softcap: float,
        ) -> Any:  # fmt: skip
            # masks, softcap and top-left calls of unequal lengths were turned away: AITER is bottom-right
            q, k, v = last_dim_contiguous(q, k, v)
            window = (window_left, window_right, 0)[:sides]
            found = flash_attn_func(
                q,
                k,
                v,
                dropout_p=0.0,
                softmax_scale=scale,
                causal=is_causal,
                window_size=window,
                return_lse=with_lse,
            )
            return (found[0], found[1]) if with_lse else found

        return run

    return load


def _load_rms_norm(config: Any) -> Callable[..., Tensor]:
    from aiter.ops.rmsnorm import rms_norm

    def run(x: Tensor, weight: Tensor | None, eps: float, weight_offset: float) -> Tensor:
        # a missing weight and an offset were turned away
        return rms_norm(x.reshape(-1, x.shape[-1]), weight, eps).reshape(x.shape)

    return run


def _load_layer_norm(config: Any) -> Callable[..., Tensor]:
    from aiter.ops.norm import layer_norm

    def run(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        return layer_norm(x.reshape(-1, x.shape[-1]), weight, bias, eps).reshape(x.shape)

    return run


def _load_group_norm(config: Any) -> Callable[..., Tensor]:
    import torch.nn.functional as F
    from aiter.ops.groupnorm import groupnorm_run

    def run(
        x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str
    ) -> Tensor:
        y = groupnorm_run(x.contiguous(), num_groups, weight, bias, eps)
        return F.silu(y) if activation == "silu" else y

    return run


def _rejects_rows(facts: Any) -> Rejected | None:
    if facts.weight is None or (facts.norm == "layer" and facts.bias is None):
        return feature("needs a weight" if facts.norm == "rms" else "needs a weight and a bias")
    if facts.weight is not facts.dtype or (facts.bias is not None and facts.bias is not facts.dtype):
        return feature("the weight must have the dtype of x")
    if facts.weight_offset:
        return feature("weight_offset is not supported")
    return shape("empty tensors go to torch") if facts.rows == 0 else None


def _rejects_group(facts: Any) -> Rejected | None:
    if facts.weight is not facts.dtype or facts.bias is not facts.dtype:
        return feature("needs a weight and a bias of the dtype of x")
    if facts.channels_last:
        return feature("channels-last input would be copied and lose its format")
    return shape("empty tensors go to torch") if facts.batch * facts.positions == 0 else None


def _vae_flag(settings: Settings) -> Rejected | None:
    if settings.rocm.vae:
        return None
    return Rejected(Reason.POLICY, "SGLANG_USE_ROCM_VAE is off", "export SGLANG_USE_ROCM_VAE=1")


_CDNA = _Amds(
    platforms=frozenset({"rocm"}),
    archs=frozenset({"gfx942", "gfx950"}),
    dtypes=HALF,
    install=INSTALL,
)
_REJECTS = rejects(
    causal=("square", "bottom_right"), window=True, head_dims=lambda d: d % 8 == 0 and d <= 256,
    head_dim_text="a multiple of 8, at most 256",
)  # fmt: skip


def _implementation(
    op: str, group: str, load: Any, rejecting: Any, doc: str, enabled: Any = None
) -> Implementation:
    return Implementation(
        op=op,
        backend="aiter",
        load=load,
        requires=_CDNA,
        rejects=rejecting,
        enabled=enabled,
        bugs=bugs_of("aiter", op),
        rank=rank("aiter", group),
        proof="contract",
        doc=doc,
    )


IMPLEMENTATIONS = (
    _implementation(
        "attention", "attention", _attention(False), _REJECTS, "AITER's flash attention for CDNA"
    ),
    _implementation(
        "attention_lse", "attention", _attention(True), _REJECTS, "AITER's flash attention for CDNA"
    ),
    _implementation("rms_norm", "norm", _load_rms_norm, _rejects_rows, "AITER's RMS norm"),
    _implementation("layer_norm", "norm", _load_layer_norm, _rejects_rows, "AITER's layer norm"),
    _implementation(
        "group_norm", "norm", _load_group_norm, _rejects_group, "AITER's group norm for VAEs", _vae_flag
    ),
)
