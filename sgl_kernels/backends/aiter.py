"""AITER, AMD's kernel library for ROCm: attention, RMS and layer norm, group norm.

Signatures read from amd-aiter 0.1.7 and the sources at e4048607; group norm is newer than 0.1.7. PyPI's `aiter` is an
unrelated package of asynchronous iterators, and importing the real one builds kernels, so presence is asked of the
distribution amd-aiter or of the submodules that only the real one has, never by importing.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.backends._attention import feature, rejects, shape
from sgl_kernels.backends._bugs import bugs_of
from sgl_kernels.backends._order import rank
from sgl_kernels.backends.flash_attn import dense_adapter, varlen_adapter
from sgl_kernels.core.device import Device
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.selection.packages import VersionOf, installed_version
from sgl_kernels.core.selection.requires import FLOATS, HALF, Requires
from sgl_kernels.core.selection.verdict import Reason, Rejected
from sgl_kernels.core.settings import Settings

INSTALL = "build https://github.com/ROCm/aiter (PyPI's 'aiter' is another package)"


def _has_amds_folders() -> bool:
    """Whether the `aiter` on the path has the folders that only AMD's has; a source build may lack the metadata."""
    spec = importlib.util.find_spec("aiter")
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    finder = importlib.machinery.PathFinder.find_spec
    return bool(roots) and all(finder(f"aiter.{part}", roots) is not None for part in ("ops", "jit"))


class Amds(Requires):
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


def _sides(call: Callable[..., Any]) -> int:
    """How many numbers this release's window_size has: 2, or 3 since it knows attention sinks."""
    return len(inspect.signature(call).parameters["window_size"].default)


def _attention(op: str) -> Callable[[Any], Callable[..., Any]]:
    def load(config: Any) -> Callable[..., Any]:
        from aiter.ops.mha import flash_attn_func, flash_attn_varlen_func

        if op == "attention_varlen":
            sides = _sides(flash_attn_varlen_func)
            return varlen_adapter(
                lambda q, k, v, cu_q, cu_k, max_q, max_k, scale, causal, window, softcap: flash_attn_varlen_func(
                    q, k, v, cu_q, cu_k, max_q, max_k, dropout_p=0.0, softmax_scale=scale, causal=causal,
                    window_size=(*window, 0)[:sides],
                )
            )  # fmt: skip
        sides, lse = _sides(flash_attn_func), op == "attention_lse"
        return dense_adapter(
            lambda q, k, v, scale, causal, window, softcap: flash_attn_func(
                q, k, v, dropout_p=0.0, softmax_scale=scale, causal=causal, window_size=(*window, 0)[:sides],
                return_lse=lse,
            ),
            lse,
        )  # fmt: skip

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


INDEX_LIMIT = 1 << 32  # groupnorm.cu counts elements in 32 bits


def _rejects_group(facts: Any) -> Rejected | None:
    if facts.weight is not facts.dtype or facts.bias is not facts.dtype:
        return feature("needs a weight and a bias of the dtype of x")
    if facts.channels_last:
        return feature("channels-last input would be copied and lose its format")
    if (
        facts.positions % 4
    ):  # its kernel for large groups reads four elements and gives them one channel's weight
        return shape(f"has {facts.positions} positions per channel, needs a multiple of 4")
    if facts.batch * facts.channels * facts.positions >= INDEX_LIMIT:
        return shape("has 2**32 elements or more, which its 32-bit index cannot count")
    return shape("empty tensors go to torch") if facts.batch * facts.positions == 0 else None


def _vae_flag(settings: Settings) -> Rejected | None:
    if settings.rocm.vae:
        return None
    return Rejected(Reason.POLICY, "SGLANG_USE_ROCM_VAE is off", "export SGLANG_USE_ROCM_VAE=1")


def _requires(dtypes: frozenset[torch.dtype]) -> Requires:
    return Amds(
        platforms=frozenset({"rocm"}), archs=frozenset({"gfx942", "gfx950"}), dtypes=dtypes, install=INSTALL
    )


_REJECTS = rejects(
    causal=("square", "bottom_right"),
    window=True,
    head_dims=lambda d: d % 8 == 0 and d <= 256,
    head_dim_text="a multiple of 8, at most 256",
)


def _implementation(
    op: str, group: str, load: Any, rejecting: Any, doc: str, enabled: Any = None
) -> Implementation:
    return Implementation(
        op=op,
        backend="aiter",
        load=load,
        requires=_requires(FLOATS if op == "group_norm" else HALF),
        rejects=rejecting,
        enabled=enabled,
        bugs=bugs_of("aiter", op),
        rank=rank("aiter", group),
        proof="contract",
        doc=doc,
    )


IMPLEMENTATIONS = (
    *(
        _implementation(op, "attention", _attention(op), _REJECTS, "AITER's flash attention for CDNA")
        for op in ("attention", "attention_lse", "attention_varlen")
    ),
    _implementation("rms_norm", "norm", _load_rms_norm, _rejects_rows, "AITER's RMS norm"),
    _implementation("layer_norm", "norm", _load_layer_norm, _rejects_rows, "AITER's layer norm"),
    _implementation(
        "group_norm", "norm", _load_group_norm, _rejects_group, "AITER's group norm for VAEs", _vae_flag
    ),
)
