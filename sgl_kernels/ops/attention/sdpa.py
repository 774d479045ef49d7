"""torch's scaled_dot_product_attention, to the letter: what is served looks like torch's, the rest is torch's.

A call is decided once for its shapes, strides and dtypes (`_decide`): served, or left to torch. Torch itself answers
whatever it answers differently from a plain inference call: gradients, tangents, transforms, traces, modes,
subclasses, kernels that the user turned off, broadcasting, arguments that it refuses. A served result has the strides
torch's would have, so that a `.view()` after the call works wherever it works with torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from sgl_kernels.core.dispatch import MAX_BOUND, bind, current
from sgl_kernels.core.tensors import PLAIN_TYPES, carries_derivative, functorch_active, open_modes
from sgl_kernels.core.torch_op import NAMESPACE
from sgl_kernels.ops import _validate as validate
from sgl_kernels.ops._fingerprint import for_kinds
from sgl_kernels.ops.attention.spec import ATTENTION

TORCH_SDPA = F.scaled_dot_product_attention  # kept: integrations may replace the name in torch
_NUMBERS = (float, int)
_INFINITY = float("inf")
MATH, EFFICIENT = 0, 2  # of torch.nn.attention.SDPBackend


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention, served by the registry.

    query (..., Hq, Sq, D), key (..., H, Sk, D), value (..., H, Sk, Dv) -> (..., Hq, Sq, Dv), as torch documents:
    causal aligned top-left, attn_mask bool (True = attend) or float, H != Hq with enable_gqa=True. The dtype, the
    strides and the errors are torch's too, and a row that sees no key is zero, as torch's is.

    The registry serves (B, H, S, D) and (H, S, D) of one floating dtype with masks that broadcast to the scores.
    Everything else goes to torch itself: dropout, gradients and forward-mode AD, torch.func transforms, tensor
    subclasses, nested and meta tensors, modes (but torch.device's), torch.jit, a scale that is not positive, other
    broadcasting, kernels switched off by torch.nn.attention.sdpa_kernel, and every call that torch refuses.

    One difference is kept on purpose: a NaN in the query gives NaN in its row, where torch's fused CPU kernel gives 0.
    """
    out = served(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if out is not None:
        return out
    # Torch takes nested tensors of the strided layout only where they are contiguous.
    if query.__class__ is Tensor and not _has_function_mode() and query.is_nested:
        query, key, value = (t.contiguous() if t.is_nested else t for t in (query, key, value))
    # A default that was left out stays left out: some subclasses know fewer arguments.
    given: dict[str, Any] = {}
    if attn_mask is not None:
        given["attn_mask"] = attn_mask
    if dropout_p.__class__ is not float or dropout_p != 0.0:
        given["dropout_p"] = dropout_p
    if is_causal is not False:
        given["is_causal"] = is_causal
    if scale is not None:
        given["scale"] = scale
    if enable_gqa is not False:
        given["enable_gqa"] = enable_gqa
    return TORCH_SDPA(query, key, value, **given)


def served(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """The registry's answer to this call, or None where torch itself must answer."""
    if is_dynamo_compiling() or torch.compiler._is_compiling_flag:
        return compiled(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if not (
        query.__class__ in PLAIN_TYPES
        and key.__class__ in PLAIN_TYPES
        and value.__class__ in PLAIN_TYPES
        and (scale is None or (scale.__class__ in _NUMBERS and 0.0 < scale < _INFINITY))
        and dropout_p.__class__ in _NUMBERS
        and dropout_p == 0.0
        and is_causal.__class__ is bool
        and enable_gqa.__class__ is bool
        and _is_nobody_watching()
        and not (_is_grad_enabled() and query.requires_grad)  # the others' are part of the key
    ):
        return None
    known = _key_of(None, (query, key, value, attn_mask, is_causal, enable_gqa, scale is None))
    if known is None:  # a tensor that is not plain
        return None
    run = current().bound.get(known)
    if run is None:
        run = _decide(known, query, key, value, attn_mask, is_causal, scale, enable_gqa)
    if run is _left_to_torch or not _get_math() or not _get_flash():
        return None
    out: Tensor | None = run(query, key, value, attn_mask, is_causal, scale)
    return out


_key_of, _ = for_kinds("ssssvvv")
_get_flash, _get_math = torch._C._get_flash_sdp_enabled, torch._C._get_math_sdp_enabled
_get_efficient, _get_cudnn = torch._C._get_mem_efficient_sdp_enabled, torch._C._get_cudnn_sdp_enabled
_is_grad_enabled = torch.is_grad_enabled
_has_function_mode = torch._C._is_torch_function_mode_enabled
_tracing_state = torch._C._get_tracing_state
_keys_of = torch._C._dispatch_keys


def _is_nobody_watching() -> bool:
    """No mode, transform, trace or forward-mode level is active: they must see torch's own function."""
    return (
        forward_ad._current_level < 0
        and not open_modes()
        and not functorch_active()
        and _tracing_state() is None
        and not (_has_function_mode() and is_mode_watching())
    )


def _left_to_torch(*args: Any) -> None:
    """What is bound for calls that torch itself must answer."""


def is_mode_watching() -> bool:
    """Whether a function mode is active, other than torch.device's own, which concerns new tensors only."""
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._device import DeviceContext

    return any(mode.__class__ is not DeviceContext for mode in _get_current_function_mode_stack())


_DEVICES = ("CPU", "CUDA", "HIP", "XPU", "MPS", "PrivateUse1")
_PLAIN_KEYS = {
    "ADInplaceOrView",
    *_DEVICES,
    *(kind + d for d in _DEVICES for kind in ("Autograd", "Autocast")),
}


def _is_plain(t: Tensor) -> bool:
    """Whether a tensor is memory with strides on a device: not nested, sparse, meta, quantised, lazy, batched, zero.

    The dispatch keys say it, and a key that nobody here has heard of says no.
    """
    names = {n.strip() for n in str(_keys_of(t)).partition("(")[2].rstrip(")").split(",")}
    return names <= _PLAIN_KEYS and not names.isdisjoint(_DEVICES) and 0 not in t.stride()[-1:]


def _decide(
    known: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None,
    enable_gqa: bool,
) -> Callable[..., Tensor | None]:  # fmt: skip
    """Bind what serves calls like this one: the registry's choice in torch's clothes, or `_left_to_torch`."""
    run: Callable[..., Tensor | None] = _left_to_torch
    if (
        all(_is_plain(t) for t in (query, key, value, mask) if t is not None)
        and not validate.needs_grad(query, key, value, mask)
        and _fits(query, key, value, mask, is_causal, enable_gqa)
    ):
        strides = _strides(query, key, value, mask, is_causal, enable_gqa)
        args = (*_rows_first(query, key, value, mask), is_causal, "top_left", scale, -1, -1, 0.0)
        bound = bind(ATTENTION, None, None, args)  # it is remembered below, in torch's clothes
        run = _dressed(bound, strides, query.ndim == 3, query, value)
        if query.device.type != "cpu":
            run = _where_kernels_are_on(run)
    bound_here = current().bound
    if len(bound_here) >= MAX_BOUND:
        bound_here.clear()
    bound_here[known] = run
    return run


def _where_kernels_are_on(run: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """`run`, but None (torch serves) while a kernel that only accelerators have is switched off."""

    def serve(*args: Any) -> Tensor | None:
        return run(*args) if _get_efficient() and _get_cudnn() else None

    return serve


def _rows_first(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(B, H, S, D) or (H, S, D) as (B, S, H, D), and the mask to match."""
    if query.ndim == 3:
        query, key, value = query[None], key[None], value[None]
        if mask is not None and mask.ndim == 3:
            mask = mask[None]
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask


def _dressed(
    bound: Callable[..., Tensor], strides: tuple[int, ...], lifts: bool, query: Tensor, value: Tensor
) -> Callable[..., Tensor]:
    """`bound`, an implementation of `attention`, with torch's layout, and results of these strides."""
    contiguous = strides == torch.empty((*query.shape[:-1], value.shape[-1]), device="meta").stride()
    like_query = (
        query.shape[-1] == value.shape[-1]
        and strides == torch.empty_like(query).stride()
        and strides[-1] == 1
    )
    heads_first: Callable[..., Tensor] | None = getattr(bound, "heads_first", None)
    if heads_first is not None and not lifts and (like_query or contiguous):

        def serve_heads_first(
            q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: Any
        ) -> Tensor:
            return heads_first(q, k, v, mask, causal, scale, like_query)

        return serve_heads_first

    def serve(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: Any) -> Tensor:
        q, k, v, mask = _rows_first(q, k, v, mask)
        out = bound(q, k, v, mask, causal, "top_left", scale, -1, -1, 0.0).transpose(1, 2)
        if lifts:
            out = out[0]
        if out.stride() == strides:
            return out
        if contiguous:
            out = out.contiguous()
        return out if out.stride() == strides else _restrided(out, strides)

    return serve


def _fits(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, enable_gqa: bool
) -> bool:
    """Whether `attention` has exactly torch's meaning for these shapes and dtypes, and torch accepts them."""
    if is_causal and mask is not None:  # torch raises
        return False
    ndim = query.ndim
    if not (ndim == key.ndim == value.ndim and (ndim == 4 or ndim == 3)):
        return False
    if not (query.dtype == key.dtype == value.dtype and query.dtype in validate.SUPPORTED):
        return False
    if not (query.device == key.device == value.device):
        return False
    q, k, v = query.shape, key.shape, value.shape
    if ndim == 4 and not (q[0] == k[0] == v[0]):
        return False
    heads, kv_heads = q[-3], k[-3]
    if kv_heads != v[-3] or k[-2] != v[-2] or q[-1] != k[-1]:
        return False
    if 0 in q or 0 in k or 0 in v:
        return False
    if heads != kv_heads and kv_heads != 1 and not (enable_gqa and heads % kv_heads == 0):
        return False  # (one key head is broadcast)
    return mask is None or _fits_mask(query, key, mask)


def _fits_mask(query: Tensor, key: Tensor, mask: Tensor) -> bool:
    if mask.device != query.device or mask.ndim < 2 or mask.ndim > query.ndim:
        return False
    if mask.dtype is not torch.bool:
        if torch.is_autocast_enabled(
            query.device.type
        ):  # torch casts the mask too, and -1e9 is -inf in float16
            return False
        if mask.dtype != query.dtype and not (
            mask.dtype is torch.float32 and query.dtype in (torch.float16, torch.bfloat16)
        ):
            return False
    full = (*query.shape[:-1], key.shape[-2])
    return all(have == 1 or have == want for have, want in zip(mask.shape, full[-mask.ndim :], strict=True))


def _strides(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, enable_gqa: bool
) -> tuple[int, ...]:
    """The strides of torch's result: the query's where a kernel of torch's is fused, contiguous where it is not."""
    choice = torch._fused_sdp_choice(query, key, value, mask, 0.0, is_causal, enable_gqa=enable_gqa)
    if choice == MATH or query.shape[-1] != value.shape[-1]:
        return torch.empty((*query.shape[:-1], value.shape[-1]), device="meta").stride()
    if choice == EFFICIENT:  # always (B, S, H, D) in memory
        return (
            torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
            .transpose(1, 2)
            .stride()
        )
    return torch.empty_like(query).stride()  # (a meta tensor's would differ in dimensions of size 1)


def _restrided(out: Tensor, strides: tuple[int, ...]) -> Tensor:
    """`out` with these strides: a view where only dimensions of size 1 differ, else a copy."""
    if all(n == 1 or a == b for n, a, b in zip(out.shape, out.stride(), strides, strict=True)):
        return out.as_strided(out.shape, strides)
    return torch.empty_strided(out.shape, strides, dtype=out.dtype, device=out.device).copy_(out)


def compiled(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float, is_causal: bool,
    scale: float | None, enable_gqa: bool,
) -> Tensor | None:  # fmt: skip
    """What the compiler traces: one op whose result looks like torch's, or None where torch itself must answer."""
    if not all(isinstance(t, Tensor) for t in (query, key, value)) or validate.needs_grad(
        query, key, value, mask
    ):
        return None
    if dropout_p != 0.0 or not (scale is None or 0.0 < scale < _INFINITY):
        return None
    if functorch_active() or torch.is_autocast_enabled(query.device.type):
        return None
    if not (
        _get_flash() and _get_math() and (query.device.type == "cpu" or (_get_efficient() and _get_cudnn()))
    ):
        return None
    if not _fits(query, key, value, mask, is_causal, enable_gqa):
        return None
    return torch.ops.sgl_kernels.scaled_dot_product_attention(
        query, key, value, mask, is_causal, scale, enable_gqa
    )


def _op(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float | None,
    enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """The body of the op, at run time."""
    out = scaled_dot_product_attention(
        query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return out


def _op_fake(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float | None,
    enable_gqa: bool,
) -> Tensor:  # fmt: skip
    return TORCH_SDPA(query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)


def _op_derived(keys: Any, *args: Any) -> Tensor:
    """The op where a derivative is asked for: torch's function has them all."""
    if carries_derivative(*args) or validate.needs_grad(*args[:4]):
        query, key, value, mask, is_causal, scale, enable_gqa = args
        return TORCH_SDPA(query, key, value, mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
    with torch._C._AutoDispatchBelowAutograd():
        overload = torch.ops.sgl_kernels.scaled_dot_product_attention.default
        return overload.redispatch(keys & torch._C._after_autograd_keyset, *args)


_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_library.define(
    "scaled_dot_product_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, bool is_causal, "
    "float? scale, bool enable_gqa) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.impl("scaled_dot_product_attention", _op, "CompositeExplicitAutograd")
_library.impl("scaled_dot_product_attention", _op_derived, "Autograd", with_keyset=True)
torch.library.register_fake(f"{NAMESPACE}::scaled_dot_product_attention", _op_fake, lib=_library)


def be_scripted_as_torch(function: Any) -> None:
    """Make `function` torch's operator to TorchScript, which compiles what a name refers to."""
    entry = (function, "aten::scaled_dot_product_attention")
    if torch.jit._builtins._builtin_table is None:  # building it takes 20 ms, which the first script pays
        torch.jit._builtins._builtin_ops.append(entry)
    else:
        torch.jit._builtins._register_builtin(*entry)


be_scripted_as_torch(scaled_dot_product_attention)
