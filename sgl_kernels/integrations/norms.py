"""Replacements for the forwards of norm modules: the same result from one call into the registry.

A replacement runs only where it means exactly what the module meant (dtypes, shapes, no hook on an inner
module that would be passed by); everywhere else it calls the module's own forward.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from sgl_kernels.integrations import library_proofs, proofs
from sgl_kernels.integrations.modules import HOOK, is_ours
from sgl_kernels.ops.norm.api import group_norm, layer_norm, norm_scale_shift, rms_norm

Replacement = Callable[..., Any]


def stock(module: Any, *args: Any, **kwargs: Any) -> Any:
    hook = module.__dict__.get(HOOK)
    own = type(module).forward if hook is None else hook.own
    return own(module, *args, **kwargs)


def fits(x: Tensor, first: Tensor | None, second: Tensor | None = None) -> bool:
    """Whether x's dtype is also the dtype of what torch would return. Written out: 0.7 us less than all()."""
    dtype = x.dtype
    return (first is None or first.dtype is dtype) and (second is None or second.dtype is dtype)


def _spans(x: Tensor, weight: Tensor | None) -> bool:
    """Whether a weight has one value for each element of the last dimension; a single one would be broadcast."""
    return weight is None or x.shape[-1:] == weight.shape


# --- torch's own -----------------------------------------------------------------------------------


def torch_layer_norm(self: nn.LayerNorm, input: Tensor) -> Tensor:
    """nn.LayerNorm over the last dimension."""
    weight, bias = self.weight, self.bias
    if input.shape[-1:] != self.normalized_shape or not fits(input, weight, bias):
        return stock(self, input)  # type: ignore[no-any-return]
    return layer_norm(input, weight, bias, self.eps)


def torch_rms_norm(self: nn.RMSNorm, x: Tensor) -> Tensor:
    """nn.RMSNorm over the last dimension."""
    weight = self.weight
    if self.eps is None or x.shape[-1:] != self.normalized_shape or not fits(x, weight):
        return stock(self, x)  # type: ignore[no-any-return]
    return rms_norm(x, weight, self.eps)


def torch_group_norm(self: nn.GroupNorm, input: Tensor) -> Tensor:
    """nn.GroupNorm; a single value in each group is an error of torch's."""
    if not fits(input, self.weight, self.bias) or input.numel() <= self.num_groups:
        return stock(self, input)  # type: ignore[no-any-return]
    return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


# --- diffusers' ------------------------------------------------------------------------------------


def fp32_layer_norm(self: Any, inputs: Tensor) -> Tensor:
    """FP32LayerNorm: statistics and weights in fp32, one rounding; what layer_norm does anyway."""
    if inputs.shape[-1:] != self.normalized_shape or inputs.dtype is torch.float64:
        return stock(self, inputs)  # type: ignore[no-any-return]
    return layer_norm(inputs, self.weight, self.bias, self.eps)


def weighted_rms_norm(self: Any, hidden_states: Tensor) -> Tensor:
    """diffusers' RMSNorm, which returns the dtype of a half weight, and fp32 for an fp32 weight."""
    weight = self.weight
    if len(self.dim) != 1 or hidden_states.dtype is torch.float64 or getattr(self, "bias", None) is not None:
        return stock(self, hidden_states)  # type: ignore[no-any-return]
    if weight is not None and weight.dtype is not hidden_states.dtype:
        if weight.dtype is not torch.float32 or hidden_states.is_complex():
            return stock(self, hidden_states)  # type: ignore[no-any-return]
        hidden_states = hidden_states.float()
    if not _spans(hidden_states, weight):
        return stock(self, hidden_states)  # type: ignore[no-any-return]
    return rms_norm(hidden_states, weight, self.eps)


def mochi_rms_norm(self: Any, hidden_states: Tensor) -> Tensor:
    """MochiRMSNorm: everything in fp32, back to the input's dtype."""
    if len(self.dim) != 1 or hidden_states.dtype is torch.float64 or not _spans(hidden_states, self.weight):
        return stock(self, hidden_states)  # type: ignore[no-any-return]
    return rms_norm(hidden_states, self.weight, self.eps)


def _inner(norm: Any) -> tuple[str, Tensor | None, Tensor | None, float] | None:
    """(kind, weight, bias, eps) of a plain last-dimension norm that nobody hooks into, else None."""
    if norm._forward_hooks or norm._forward_pre_hooks or ("forward" in norm.__dict__ and not is_ours(norm)):
        return None
    hook = norm.__dict__.get(HOOK)
    if hook is None or not hook.active:
        return None
    replacement = hook.replacement
    if replacement in (torch_layer_norm, fp32_layer_norm) and len(norm.normalized_shape) == 1:
        return "layer", norm.weight, norm.bias, norm.eps
    if replacement is weighted_rms_norm and len(norm.dim) == 1 and getattr(norm, "bias", None) is None:
        return "rms", norm.weight, None, norm.eps
    return None


def _modulated(norm: nn.Module, x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor | None:
    """norm(x) * (1 + scale) + shift for x (B, S, D) and (B, D) parameters, or None where stock must do it."""
    inner = _inner(norm)
    if inner is None or x.ndim != 3 or x.dtype is torch.float64:
        return None
    kind, weight, bias, eps = inner
    if not fits(x, scale, shift) or (kind == "rms" and not fits(x, weight)):
        return None  # torch would promote: fp32 parameters make an fp32 result
    return norm_scale_shift(x, scale, shift, weight=weight, bias=bias, eps=eps, norm=kind)


def ada_layer_norm_zero(
    self: Any,
    x: Tensor,
    timestep: Any = None,
    class_labels: Any = None,
    hidden_dtype: Any = None,
    emb: Any = None,
) -> Any:
    """AdaLayerNormZero: six modulation vectors, the first two applied here."""
    if self.emb is not None:
        emb = self.emb(timestep, class_labels, hidden_dtype=hidden_dtype)
    shift, scale, *rest = self.linear(self.silu(emb)).chunk(6, dim=1)
    y = _modulated(self.norm, x, scale, shift)
    if y is None:
        y = self.norm(x) * (1 + scale[:, None]) + shift[:, None]
    return (y, *rest)


def ada_layer_norm_zero_single(self: Any, x: Tensor, emb: Any = None) -> Any:
    """AdaLayerNormZeroSingle: three modulation vectors."""
    shift, scale, gate = self.linear(self.silu(emb)).chunk(3, dim=1)
    y = _modulated(self.norm, x, scale, shift)
    return (self.norm(x) * (1 + scale[:, None]) + shift[:, None] if y is None else y), gate


def ada_layer_norm_continuous(self: Any, x: Tensor, conditioning_embedding: Tensor) -> Tensor:
    """AdaLayerNormContinuous: scale and shift from the conditioning."""
    scale, shift = self.linear(self.silu(conditioning_embedding).to(x.dtype)).chunk(2, dim=1)
    y = _modulated(self.norm, x, scale, shift)
    return self.norm(x) * (1 + scale)[:, None, :] + shift[:, None, :] if y is None else y


def lumina_rms_norm_zero(self: Any, x: Tensor, emb: Any = None) -> Any:
    """LuminaRMSNormZero: a scale without a shift."""
    scale, *rest = self.linear(self.silu(emb)).chunk(4, dim=1)
    y = _modulated(self.norm, x, scale, None)
    return (self.norm(x) * (1 + scale[:, None]) if y is None else y), *rest


# --- transformers' ---------------------------------------------------------------------------------


def transformers_rms_norm(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A transformers *RMSNorm that is proven to be x / rms(x) * weight."""
    weight = self.weight
    if kwargs or len(args) != 1 or not fits(args[0], weight) or not _spans(args[0], weight):
        return stock(self, *args, **kwargs)
    return rms_norm(args[0], weight, _eps(self))


def transformers_rms_norm_offset(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A transformers *RMSNorm that is proven to be x / rms(x) * (1 + weight), as Gemma's."""
    weight = self.weight
    if kwargs or len(args) != 1 or not fits(args[0], weight) or not _spans(args[0], weight):
        return stock(self, *args, **kwargs)
    return rms_norm(args[0], weight, _eps(self), weight_offset=1.0)


def _eps(module: Any) -> float:
    return float(getattr(module, proofs.eps_name(module)))


def rms_form(module: nn.Module) -> Replacement | None:
    """The replacement for a norm class of transformers by what it computes; None if it is neither of ours."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.is_meta:
        return None  # on meta nothing runs; whoever fills it applies then
    offset = proofs.rms_offset(module)
    return {0.0: transformers_rms_norm, 1.0: transformers_rms_norm_offset}.get(offset)  # type: ignore[arg-type]


# --- GroupNorm followed by SiLU --------------------------------------------------------------------


class _Passing(threading.local):
    """The last result of `group_norm_silu` in this thread, until a SiLU runs."""

    result: weakref.ref[Tensor] | None = None


_passing = _Passing()


def group_norm_silu(self: nn.GroupNorm, input: Tensor) -> Tensor:
    """A GroupNorm whose result goes straight into a SiLU: both at once, and word of it for `fused_silu`."""
    watched = self._forward_hooks or _any_requires_grad(input, self.weight) or not _still_paired(self)
    if (
        is_compiling()
        or watched
        or not fits(input, self.weight, self.bias)
        or input.numel() <= self.num_groups
    ):
        return torch_group_norm(
            self, input
        )  # the compiler fuses on its own, and cannot see what is passed on
    y = group_norm(input, self.num_groups, self.weight, self.bias, self.eps, activation="silu")
    _passing.result = weakref.ref(y)
    return y


def _still_paired(norm: nn.GroupNorm) -> bool:
    """Whether the SiLU behind a norm is the one that was there, with our hook and nobody else's."""
    ours = norm.__dict__.get(HOOK)
    if ours is None:
        return False  # given back by another thread meanwhile
    owner, name, act = ours.proven
    hook = act.__dict__.get(HOOK)
    return (
        owner._modules.get(name) is act
        and hook is not None
        and hook.active
        and is_ours(act)
        and not (act._forward_hooks or act._forward_pre_hooks)
    )


def fused_silu(self: nn.SiLU, input: Tensor) -> Tensor:
    """SiLU, unless the GroupNorm right before it, in the same thread, has done it."""
    if not is_compiling():
        done, _passing.result = _passing.result, None
        if done is not None and done() is input:
            return input
    return stock(self, input)  # type: ignore[no-any-return]


def _any_requires_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


SILU_OWNERS = frozenset({"ResnetBlock2D", "Encoder", "Decoder"})
"""diffusers classes whose GroupNorm feeds a SiLU. Their code is read once more before it is relied on."""


def silu_pairs(module: nn.Module) -> list[tuple[nn.GroupNorm, str, nn.SiLU]]:
    """(GroupNorm, name, SiLU) of a module whose own code applies one right after the other, wherever it does."""
    if type(module).__name__ not in SILU_OWNERS or not type(module).__module__.startswith("diffusers."):
        return []
    pairs = []
    for norm_name, act_name in (
        ("norm1", "nonlinearity"),
        ("norm2", "nonlinearity"),
        ("conv_norm_out", "conv_act"),
    ):
        norm, act = getattr(module, norm_name, None), getattr(module, act_name, None)
        if (
            type(norm) is nn.GroupNorm
            and type(act) is nn.SiLU
            and not act.inplace
            and getattr(module, "time_embedding_norm", "") != "scale_shift"  # which modulates in between
            and _adjacent(type(module), norm_name, act_name)
        ):
            pairs.append((norm, act_name, act))
    return pairs


_MODULATED = "self.time_embedding_norm == 'scale_shift'"


def _adjacent(cls: type[nn.Module], norm: str, act: str) -> bool:
    """Whether in cls.forward the statement after each `h = self.<norm>(h)` is `h = self.<act>(h)`.

    `silu_pairs` has seen that the branch _MODULATED is not taken, and a GroupNorm takes no second argument.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls.forward)))
    except (OSError, TypeError, SyntaxError):
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == _MODULATED:
            node.body = [ast.Pass()]
    named = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == norm]
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and n.func in named]
    single = [call for call in calls if len(call.args) == 1 and not call.keywords]
    followed = list(_follows(tree.body, None, norm, act))
    return len(named) == len(calls) and 0 < len(single) == len(followed) and all(followed)


def _follows(body: list[ast.stmt], after: ast.stmt | None, norm: str, act: str) -> Iterator[bool]:
    for i, statement in enumerate(body):
        following = body[i + 1] if i + 1 < len(body) else after
        name = _applied(statement, norm)
        if name is not None:
            yield following is not None and _applied(following, act) == name
        for field in ("body", "orelse"):
            inner = getattr(statement, field, None)
            if isinstance(inner, list):
                yield from _follows(inner, following, norm, act)


def _applied(statement: ast.stmt, attribute: str) -> str | None:
    """'h' for the statement `h = self.<attribute>(h)`, else None."""
    found = re.fullmatch(rf"(\w+) = self\.{attribute}\(\1\)", ast.unparse(statement))
    return found.group(1) if found else None


DIFFUSERS: dict[str, Replacement] = {
    "FP32LayerNorm": fp32_layer_norm,
    "RMSNorm": weighted_rms_norm,
    "MochiRMSNorm": mochi_rms_norm,
    "AdaLayerNormZero": ada_layer_norm_zero,
    "AdaLayerNormZeroSingle": ada_layer_norm_zero_single,
    "AdaLayerNormContinuous": ada_layer_norm_continuous,
    "LuminaRMSNormZero": lumina_rms_norm_zero,
}
"""Class of diffusers.models.normalization -> replacement of its forward."""


def replacement_for(module: nn.Module) -> Replacement | None:
    """The replacement for a module, by the function that is its class's forward: subclasses keep their own."""
    cls = type(module)
    forward: Any = cls.forward
    torch_own: dict[Any, Replacement] = {
        nn.LayerNorm.forward: torch_layer_norm,
        nn.RMSNorm.forward: torch_rms_norm,
        nn.GroupNorm.forward: torch_group_norm,
    }
    if forward in torch_own:
        return torch_own[forward]
    if cls.__module__.split(".")[0] == "transformers" and "Norm" in cls.__name__:
        return rms_form(module)
    library = sys.modules.get("diffusers.models.normalization")
    for name, replacement in DIFFUSERS.items():
        theirs = getattr(library, name, None)
        if theirs is not None and forward is theirs.forward:
            return replacement if library_proofs.replaces(cls, theirs, replacement, replacement_for) else None
    return None
