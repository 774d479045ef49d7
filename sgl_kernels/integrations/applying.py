"""`apply`: one model served by the registry, whatever library it comes from; and back."""

from __future__ import annotations

import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from torch import nn

from sgl_kernels.core.dispatch import current
from sgl_kernels.integrations import diffusers as in_diffusers
from sgl_kernels.integrations import linears as replace_linear
from sgl_kernels.integrations import norms as replace
from sgl_kernels.integrations import padding as replace_padding
from sgl_kernels.integrations import processors, rocm_vae
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


class _Application:
    """What one call of `apply` changed, held weakly: a component that is given up is not kept in memory by us.

    Each hook carries `owner`, and so do its copies: a component exchanged for its own copy is found again.
    """

    def __init__(self) -> None:
        self.owner = uuid.uuid4().hex
        self.hooks: list[weakref.ref[Hook]] = []
        self.roots: list[weakref.ref[nn.Module]] = []

    def attach(self, hook: Hook, forward: Callable[..., Any]) -> None:
        hook.owner = self.owner
        attach(hook, forward)
        self.hooks.append(weakref.ref(hook))

    def undo(self) -> None:
        """Give back whatever of it is left, wherever it is now."""
        for root in (ref() for ref in self.roots):
            if root is not None:
                _release(root, self.owner)
        for hook in (ref() for ref in self.hooks):
            # One that another `apply` has replaced since is that one's to answer for.
            if hook is not None and found(hook.module) is hook:
                detach(hook.module)
        self.hooks.clear()
        self.roots.clear()


_of: weakref.WeakKeyDictionary[Any, list[_Application]] = weakref.WeakKeyDictionary()
"""model or pipeline -> what was applied through it and may still hold."""
_last: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
"""root -> the owner of what holds for it as a whole, such as a transformers model's implementation."""


class Applied:
    """What `apply` did to a model: `attention`, `norms` and `linears` name what it serves, `left` what it does not.

    `remove()` undoes it; so does the end of a `with` block.
    """

    def __init__(
        self,
        model: Any,
        attention: list[str],
        norms: list[str],
        linears: list[str],
        packed: list[str],
        left: list[str],
        application: _Application | None = None,
    ) -> None:
        self.model = model
        self.attention = tuple(attention)
        self.norms = tuple(norms)
        self.linears = tuple(linears)
        self.packed = tuple(packed)
        self.left = tuple(left)  # attention that is of another kind, or was chosen by name: stock runs it
        self._application = application
        self._owner = "" if application is None else application.owner

    def remove(self) -> None:
        """Give back what this `apply` changed, also where a component was taken out, exchanged or compiled since.

        What another `apply` did later stays. Calling it again changes nothing.
        """
        with _lock:
            if self._application is not None:
                self._application.undo()
            for root in _roots_left(self.model):
                _release(root, self._owner)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_application": None}  # a copy answers for the copy of the model

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
    attention  hook the attention layers; rules of the configuration see each one's role and dotted name.
               A layer whose processor names its backend, or for which the user did, keeps it
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
        application = _Application()
        _remembered(model).append(application)
        try:
            served = [
                _apply_to(application, prefix, root, backend, attention, norms, linears, padding)
                for prefix, root in roots
            ]
        except BaseException:
            remove(model)  # never half applied
            raise
    kinds = ([name for part in served for name in part[kind]] for kind in range(5))
    attentions, normed, linear, packed, left = kinds
    return Applied(model, attentions, normed, linear, packed, left, application)


def _remembered(model: Any) -> list[_Application]:
    try:
        return _of.setdefault(model, [])
    except TypeError:  # neither hashable nor weakly held: its own `Applied` is what remembers
        return []


def _apply_to(
    application: _Application,
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
    left: list[str] = []
    application.roots.append(weakref.ref(root))
    _last[root] = application.owner

    def swap(path: str, module: nn.Module, choose: Callable[[nn.Module], Any]) -> bool:
        if "forward" in module.__dict__:
            return False  # offloading hooks move weights in theirs; they keep it
        replacement = choose(module)
        if replacement is None:
            return False
        hook = Hook(
            module, path, backend=backend, replacement=replacement, proven=replace_linear.relies_on(module)
        )
        application.attach(hook, hook.replaced)
        return True

    for path, module in _layers(prefix, root):
        if norms and swap(path, module, replace.replacement_for):
            swapped.append(path)
        elif linears and swap(path, module, replace_linear.replacement_for):
            projections.append(path)
        elif padding == "skip" and swap(path, module, replace_padding.choose):
            packed.append(path)
        elif attention and calls_attention(module):
            hook = Hook(module, path, role_of(path, module), backend, needs_sdpa=True)
            application.attach(hook, hook.attend)
            named = in_diffusers.names_a_backend(module, hook.asking)
            (left if named or not processors.reaches_sdpa(module) else layers).append(path)
    if norms:
        _pair_silu(application, root)
    if rocm_vae.wanted(root, current().settings):
        rocm_vae.tune_convolutions(root)
    if attention:
        served, stays = in_transformers.hook(root, prefix, backend)
        layers += served
        left += stays
    _adopt(application, root)
    return layers, swapped, projections, packed, left


def _layers(prefix: str, root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(dotted name, module) of everything in a model but the wrappers of torch.compile, whose name is left out."""
    for name, module in root.named_modules():
        if type(module).__module__ != "torch._dynamo.eval_frame":
            parts = [part for part in (*prefix.split("."), *name.split(".")) if part not in ("", "_orig_mod")]
            yield ".".join(parts), module


def _adopt(application: _Application, root: nn.Module) -> None:
    """Remember the hooks that were put on elsewhere."""
    for module in root.modules():
        hook = found(module)
        if hook is not None and not hook.owner and hook.module is module:
            hook.owner = application.owner
            application.hooks.append(weakref.ref(hook))


def remove(model: Any) -> None:
    """Undo `apply` on a model, and what was applied through it to parts that have left it since.

    A model that is not applied is left as it is.
    """
    with _lock:
        try:
            past = _of.pop(model, [])
        except TypeError:
            past = []
        for application in past:
            application.undo()
        for _, root in _roots(model):
            _release(root)


def _release(root: nn.Module, owner: str = "") -> None:
    """Undo everything on a tree of modules, or what one `apply` did and its copies."""
    modules = list(root.modules())
    held = _last.get(root) == owner or any(h is not None and h.owner == owner for h in map(found, modules))
    if not owner or held:
        rocm_vae.release(root)
        for module in modules:
            _last.pop(module, None)
            hook = found(module)
            if hook is not None and (not owner or hook.owner == owner):
                detach(module)


def is_applied(model: Any) -> bool:
    """Whether any part of a model is served through `apply`."""
    return any(is_ours(m) for _, root in _roots(model) for m in root.modules())


def _roots(model: Any) -> list[tuple[str, nn.Module]]:
    if isinstance(model, nn.Module):
        return [("", model)]
    if in_diffusers.applies_to(model) and hasattr(model, "components"):
        return in_diffusers.parts(model)
    raise TypeError(
        f"apply: model is {type(model).__name__}, expected a torch.nn.Module or a diffusers pipeline"
    )


def _roots_left(model: Any) -> list[nn.Module]:
    """The parts of a model as it is now."""
    return [root for _, root in _roots(model)]


def _pair_silu(application: _Application, root: nn.Module) -> None:
    """Where a GroupNorm of a VAE feeds a SiLU, do both in the norm."""
    for name, module in root.named_modules():
        for norm, act_name, act in replace.silu_pairs(module):
            hook = found(norm)
            if hook is None or not is_ours(norm) or ("forward" in act.__dict__ and not is_ours(act)):
                continue
            hook.replacement = replace.group_norm_silu
            hook.proven = (module, act_name, act)
            if not is_ours(act):
                passing = Hook(act, f"{name}.act", replacement=replace.fused_silu)
                application.attach(passing, passing.replaced)
