"""`apply`: one model served by the registry, whatever library it comes from; and back."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import nn

from sgl_kernels.core.dispatch import current
from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.log import warn_once
from sgl_kernels.integrations import diffusers as in_diffusers
from sgl_kernels.integrations import linears as replace_linear
from sgl_kernels.integrations import norms as replace
from sgl_kernels.integrations import padding as replace_padding
from sgl_kernels.integrations import rocm_vae
from sgl_kernels.integrations import transformers_apply as in_transformers
from sgl_kernels.integrations.modules import (
    Hook,
    attach,
    calls_attention,
    detach,
    found,
    is_ours,
    preferring,
    role_of,
)

_lock = threading.RLock()


class Applied:
    """What `apply` did to a model: `attention`, `norms` and `linears` name what it serves. `remove()` undoes it.

    Also a context manager: the model is given back at the end of the block.
    """

    def __init__(
        self, model: Any, attention: list[str], norms: list[str], linears: list[str], packed: list[str],
        left: list[str],
    ) -> None:  # fmt: skip
        self.model = model
        self.attention = tuple(attention)
        self.norms = tuple(norms)
        self.linears = tuple(linears)
        self.packed = tuple(packed)
        self.left = tuple(left)  # attention that is of another kind, or was chosen by name: stock runs it

    def remove(self) -> None:
        """Give the model back as it was. Calling it again changes nothing."""
        remove(self.model)

    def __enter__(self) -> Applied:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        name = type(self.model).__name__
        linears = f", {len(self.linears)} linear layers and gates" if self.linears else ""
        packed = ", padding skipped" if self.packed else ""
        left = f", {len(self.left)} attention layers left to stock" if self.left else ""
        served = f"{len(self.attention)} attention layers, {len(self.norms)} norms"
        return f"Applied({name}: {served}{linears}{packed}{left})"


def apply(
    model: Any,
    backend: str | None = None,
    *,
    attention: bool = True,
    norms: bool = True,
    linears: bool = True,
    padding: str = "compute",
) -> Applied:
    """Serve one model's layers from the registry; no other model, and nothing process-wide, changes.

    model      a diffusers model or pipeline, a transformers model, or any torch.nn.Module
    backend    preferred backend or ordered list, for this model: as `use(backend=...)` around each layer
    attention  hook the attention layers; rules of the configuration see each one's role and dotted name
    norms      replace LayerNorm, RMSNorm, GroupNorm (with the SiLU after it in VAEs) and adaLN modulation
    linears    replace linear layers where a backend beats torch's, with the activation after them, and gated MLPs
    padding    "skip" leaves the padding of text encoders out, whose rows of the result then are zero

    Applying again replaces what was applied before. Copies made with copy.deepcopy or pickle are applied too, on
    their own weights; state dicts and save_pretrained hold the stock model.

    Raises ConfigError for an unknown backend name, TypeError for something that is not a model.
    """
    roots = _roots(model)
    if padding not in ("compute", "skip"):
        raise ValueError(f"apply: padding is {padding!r}, expected 'compute' or 'skip'")
    if padding == "skip" and not (
        attention and any(replace_padding.packs(m) for _, r in roots for m in r.modules())
    ):
        known = ", ".join(sorted(replace_padding.ENCODERS))
        raise ValueError(f"apply: padding='skip' needs attention=True and a model with one of {known}")
    if backend is not None:
        preferring(current(), backend)  # an unknown name is an error here, not at the first step
    with _lock:
        remove(model)
        try:
            served = [
                _apply_to(prefix, root, backend, attention, norms, linears, padding) for prefix, root in roots
            ]
        except BaseException:
            remove(model)  # never half applied
            raise
    return Applied(model, *([name for part in served for name in part[kind]] for kind in range(5)))


def _apply_to(
    prefix: str,
    root: nn.Module,
    backend: str | None,
    attention: bool,
    norms: bool,
    linears: bool,
    padding: str,
) -> tuple[list[str], list[str], list[str], list[str], list[str]]:
    layers: list[str] = []
    swapped: list[str] = []
    projections: list[str] = []
    packed: list[str] = []
    for name, module in root.named_modules():
        path = ".".join(part for part in (prefix, name) if part)
        if norms and _swap(path, module, backend, replace.replacement_for):
            swapped.append(path)
        elif linears and _swap(path, module, backend, replace_linear.replacement_for):
            projections.append(path)
        elif padding == "skip" and _swap(path, module, backend, replace_padding.choose):
            packed.append(path)
        elif attention and calls_attention(module):
            _hook_attention(path, module, backend)
            layers.append(path)
    if norms:
        _pair_silu(root)
    if rocm_vae.wanted(root, current().settings):
        rocm_vae.tune_convolutions(root)
    left: list[str] = []
    if attention:
        served, left = in_transformers.hook(root, prefix, backend)
        layers += served
    return layers, swapped, projections, packed, left


def remove(model: Any) -> None:
    """Undo `apply` on a model. A model that is not applied is left as it is."""
    with _lock:
        for _, root in _roots(model):
            in_transformers.unhook(root)
            rocm_vae.release(root)
            for _, module in root.named_modules():
                detach(module)


def is_applied(model: Any) -> bool:
    """Whether any part of a model is served through `apply`."""
    return any(is_ours(m) for _, root in _roots(model) for _, m in root.named_modules())


def _roots(model: Any) -> list[tuple[str, nn.Module]]:
    if isinstance(model, nn.Module):
        return [("", model)]
    if in_diffusers.applies_to(model) and hasattr(model, "components"):
        return in_diffusers.parts(model)
    raise TypeError(
        f"apply: model is {type(model).__name__}, expected a torch.nn.Module or a diffusers pipeline"
    )


def _hook_attention(path: str, module: Any, backend: str | None) -> None:
    hook = Hook(module, path, role_of(path, module), backend, needs_sdpa=True)
    processor: Any = getattr(module, "processor", None)
    member = _dispatcher_name() if hasattr(processor, "_attention_backend") else None
    if member is not None:
        # A copy, because processors may be shared between models; the class attribute is diffusers' default.
        ours = copy.copy(processor)
        ours._attention_backend = member
        module.processor = ours
        hook.processor = (processor, ours)
    attach(hook, hook.attend)


def _dispatcher_name() -> Any:
    """diffusers' enum member for us, or None where its dispatcher is of a version we do not know."""
    try:
        return in_diffusers.member()
    except ConfigError as error:  # its default then reaches us through the SDPA hook
        warn_once("integrations.diffusers", f"apply: {error}")
        return None


def _swap(path: str, module: nn.Module, backend: str | None, choose: Callable[[nn.Module], Any]) -> bool:
    if "forward" in module.__dict__:
        return False  # offloading hooks move weights in theirs; they keep it
    replacement = choose(module)
    if replacement is None:
        return False
    hook = Hook(module, path, backend=backend, replacement=replacement)
    attach(hook, hook.normalise)
    return True


def _pair_silu(root: nn.Module) -> None:
    """Where a GroupNorm of a VAE feeds a SiLU, do both in the norm."""
    for name, module in root.named_modules():
        for norm, act in replace.silu_pairs(module):
            hook = found(norm)
            if hook is None or not is_ours(norm) or ("forward" in act.__dict__ and not is_ours(act)):
                continue
            hook.replacement = replace.group_norm_silu
            if not is_ours(act):
                passing = Hook(act, f"{name}.act", replacement=replace.marked_silu)
                attach(passing, passing.normalise)
