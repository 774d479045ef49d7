"""One kernel layer for torch: the best attention, norm, rope and FP4 GEMM at hand, with a reason for each choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgl_kernels._needs import torch_problem as _torch_problem
from sgl_kernels._version import __version__ as __version__

_problem = _torch_problem()

if (
    TYPE_CHECKING or not _problem
):  # without torch the command line still says what is missing; see __getattr__
    from sgl_kernels import _wiring as _wiring
    from sgl_kernels.core.control import configure as configure
    from sgl_kernels.core.control import explain as explain
    from sgl_kernels.core.control import record as record
    from sgl_kernels.core.control import report as report
    from sgl_kernels.core.control import use as use
    from sgl_kernels.core.control import warmup as warmup
    from sgl_kernels.core.errors import ConfigError as ConfigError
    from sgl_kernels.core.selection.policy import OpPolicy as OpPolicy
    from sgl_kernels.core.selection.verdict import UnsupportedError as UnsupportedError
    from sgl_kernels.integrations import apply as apply
    from sgl_kernels.integrations import install as install
    from sgl_kernels.integrations import uninstall as uninstall
    from sgl_kernels.ops.activation.api import gelu_mul as gelu_mul
    from sgl_kernels.ops.activation.api import gelu_tanh as gelu_tanh
    from sgl_kernels.ops.activation.api import silu_mul as silu_mul
    from sgl_kernels.ops.attention.api import attention as attention
    from sgl_kernels.ops.attention.api import attention_lse as attention_lse
    from sgl_kernels.ops.attention.api import attention_varlen as attention_varlen
    from sgl_kernels.ops.attention.compat_flash import flash_attn_func as flash_attn_func
    from sgl_kernels.ops.attention.compat_flash import flash_attn_varlen_func as flash_attn_varlen_func
    from sgl_kernels.ops.attention.sdpa import scaled_dot_product_attention as scaled_dot_product_attention
    from sgl_kernels.ops.linear.api import linear as linear
    from sgl_kernels.ops.modulate.api import gate_residual as gate_residual
    from sgl_kernels.ops.modulate.api import scale_shift as scale_shift
    from sgl_kernels.ops.norm.api import group_norm as group_norm
    from sgl_kernels.ops.norm.api import layer_norm as layer_norm
    from sgl_kernels.ops.norm.api import norm_scale_shift as norm_scale_shift
    from sgl_kernels.ops.norm.api import residual_gate_norm_scale_shift as residual_gate_norm_scale_shift
    from sgl_kernels.ops.norm.api import rms_norm as rms_norm
    from sgl_kernels.ops.nvfp4.api import nvfp4_dequantize as nvfp4_dequantize
    from sgl_kernels.ops.nvfp4.api import nvfp4_linear as nvfp4_linear
    from sgl_kernels.ops.nvfp4.api import nvfp4_quantize as nvfp4_quantize
    from sgl_kernels.ops.nvfp4.formats import MXFP4 as MXFP4
    from sgl_kernels.ops.nvfp4.formats import NVFP4 as NVFP4
    from sgl_kernels.ops.nvfp4.formats import ScaledTensor as ScaledTensor
    from sgl_kernels.ops.rope.api import apply_rope as apply_rope
    from sgl_kernels.ops.rope.api import qk_norm_rope as qk_norm_rope

if TYPE_CHECKING:
    from sgl_kernels.core.settings import Settings as Settings
    from sgl_kernels.core.settings import load_settings as load_settings


def __getattr__(name: str) -> object:
    """Settings and load_settings, when first asked for: reading their table costs an import 14 ms.

    Where torch cannot be imported every name of the package is an ImportError that says so.
    """
    if not _problem and name in ("Settings", "load_settings"):
        from sgl_kernels.core import settings

        return getattr(settings, name)
    if _problem and not name.startswith("__"):
        raise ImportError(f"sgl_kernels.{name} needs torch: {_problem}")
    raise AttributeError(f"module 'sgl_kernels' has no attribute {name!r}")
