"""`apply` for the attention of transformers: module by module, wherever a model stands.

The configuration of a model stays the object it is, with the implementation it names: masks and flags are made as
they always were. Only its attention modules get a view of it, which has the same attributes, live, and names us.
So what a mask means is known: it is what the implementation that was chosen makes of it.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from sgl_kernels.core.log import warn_once
from sgl_kernels.integrations import transformers as library
from sgl_kernels.integrations.holding import Hold
from sgl_kernels.integrations.modules import Hook, attach, found, role_of
from sgl_kernels.integrations.transformers_contract import (
    NAME,
    asks_interface,
    contract_of,
    rules_of,
    set_rules,
)

_views: dict[tuple[type, str], type] = {}


def view_of(config: Any, implementation: str) -> Any:
    """A view of a configuration: its attributes are the configuration's own, only the implementation is ours.

    It is ours for as long as the configuration names `implementation`: one that is chosen later stands.
    """
    kind = (type(config), implementation)
    cls = _views.get(kind)
    if cls is None:
        cls = _views[kind] = _view_class(*kind)
    view: Any = object.__new__(cls)
    object.__setattr__(view, "__dict__", config.__dict__)
    object.__setattr__(view, "_sgl_theirs", config)
    return view


def _view_class(base: type, implementation: str) -> type:
    def ours(self: Any) -> Any:
        current = self._attn_implementation_internal
        return NAME if current == implementation else current

    def chosen(self: Any, value: Any) -> None:
        self._sgl_theirs._attn_implementation = value

    def parts(self: Any, protocol: int = 0) -> Any:
        return view_of, (self._sgl_theirs, implementation)

    body = {
        "__slots__": ("_sgl_theirs",),
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__init__": base.__init__,  # type: ignore[misc]  # their __init_subclass__ writes another otherwise
        "__reduce_ex__": parts,
        "_attn_implementation": property(ours, chosen),
    }
    cls = type(base.__name__, (base,), body)
    set_rules(cls, implementation)
    return cls


class AttentionHook(Hook):
    """The hook on one attention module: its scope, its view of the configuration, and our name in transformers."""

    def __init__(self, module: nn.Module, layer: str, role: str, backend: str | None, viewed: bool) -> None:
        super().__init__(module, layer, role, backend, needs_sdpa=not viewed)
        self.configs: tuple[Any, Any] | None = None  # theirs, and our view of it
        self.registered: Hold | None = None
        if viewed:
            config: Any = module.config
            self.registered = library.hold()
            self.configs = (config, view_of(config, config._attn_implementation))
            module.config = self.configs[1]

    def give_back(self) -> None:
        """Give the module its configuration; one that was put there since stands."""
        if self.registered is not None:
            self.registered.release()
            self.registered = None
        if self.configs is not None and self.module.config is self.configs[1]:
            self.module.config = self.configs[0]  # type: ignore[assignment]

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["registered"] = self.registered is not None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.registered = library.hold() if state["registered"] else None
        contract_of(type(self.module))


def hook(root: nn.Module, prefix: str, backend: str | None) -> tuple[list[str], list[str]]:
    """Serve the attention of every transformers model in a module, at any depth.

    Returns the dotted names of the attention modules that are served, and of those left to stock.
    """
    served: list[str] = []
    left: list[str] = []
    if "transformers" not in sys.modules:
        return served, left
    for name, module in list(root.named_modules()):
        if not asks_interface(module) or found(module) is not None:
            continue
        path = ".".join(part for part in (prefix, name) if part)
        how = _how(module)
        if how is None:
            left.append(path)
            continue
        scoped = AttentionHook(module, path, role_of(name, module), backend, how == "view")
        attach(scoped, scoped.attend)
        served.append(path)
    return served, left


def _how(module: nn.Module) -> str | None:
    """'view', 'sdpa' (torch's function is ours inside the module), 'name' (set to us already), or None: leave it."""
    from transformers import PreTrainedModel

    config = getattr(module, "config", None)
    implementation = getattr(config, "_attn_implementation", None)
    contract = contract_of(type(module))
    own_code = contract.branches or isinstance(module, PreTrainedModel)
    cls = type(module).__name__
    if implementation == NAME:
        rules_of(config)
        return "name"
    if implementation == "sdpa":
        return "sdpa" if own_code else "view"
    if implementation == "eager":
        if contract.plain and not own_code:
            return "view"
        why = "its eager code is not plain attention, or asks by name which implementation is set"
    else:
        why = f"its implementation was chosen: {implementation!r}"
    warn_once(f"integrations.transformers.{cls}", f"apply: {cls} keeps its own attention: {why}")
    return None


def serves(module: nn.Module) -> bool:
    """Whether the attention inside a module runs through our function now."""
    asking = [m for m in module.modules() if asks_interface(m)]
    return bool(asking) and all(getattr(m.config, "_attn_implementation", None) == NAME for m in asking)
