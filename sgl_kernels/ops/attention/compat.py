"""Drop-ins with other libraries' signatures and meanings: torch's SDPA and FlashAttention's two functions."""

from __future__ import annotations

from sgl_kernels.ops.attention.compat_flash import flash_attn_func as flash_attn_func
from sgl_kernels.ops.attention.compat_flash import flash_attn_varlen_func as flash_attn_varlen_func
from sgl_kernels.ops.attention.sdpa import TORCH_SDPA as TORCH_SDPA
from sgl_kernels.ops.attention.sdpa import scaled_dot_product_attention as scaled_dot_product_attention
