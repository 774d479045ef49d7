"""What kind of call this is: one for our kernels, or one that torch alone knows how to treat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.compiler import is_compiling

from sgl_kernels.core.tensors import is_plain as _through_attributes
from sgl_kernels.core.tensors import is_subclass
from sgl_kernels.ops._fingerprint import compiled

is_plain: Callable[..., bool] = _through_attributes if compiled is None else compiled.is_plain
"""is_plain(*tensors): whether each is None or a strided torch.Tensor with memory, outside of torch.func's transforms
and of forward-mode differentiation. Whoever stands in for a function or a layer of torch asks this first."""


def is_opaque(t: Any) -> bool:
    """Whether a call must go through the torch op: under the compiler, for tensor subclasses and on meta."""
    return is_compiling() or is_subclass(t) or (hasattr(t, "is_meta") and t.is_meta)
