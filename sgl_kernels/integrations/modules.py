"""Per-model hooks: an instance's `forward` replaced, in a scope that knows its layer and role, and given back.

Nothing outside the model changes. A hook refers to its module and to nothing else, so that copy.deepcopy of an
applied model, and pickling it, give an applied model with weights of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling

from sgl_kernels.core.dispatch import ACTIVE, Dispatcher, current
from sgl_kernels.core.errors import is_refused
from sgl_kernels.core.log import warn_once
from sgl_kernels.core.settings import Scope
from sgl_kernels.integrations import diffusers as in_diffusers
from sgl_kernels.integrations import native, processors, torch_hook
from sgl_kernels.integrations.holding import Hold
from sgl_kernels.ops._key import is_plain

HOOK = "_sgl_kernels"
_any_autocast = torch._C._is_any_autocast_enabled

Replacement = Callable[..., Any]


class Hook:
    """What `apply` left on one module; its methods stand in for the module's forward.

    Plain data with a reference to its module, so that it copies and pickles together with it.
    """

    def __init__(
        self,
        module: nn.Module,
        layer: str,
        role: str = "",
        backend: str | None = None,
        replacement: Replacement | None = None,
        needs_sdpa: bool = False,
        owner: str = "",
        proven: Any = None,
    ) -> None:
        self.module = module
        self.layer = layer
        self.role = role
        self.backend = backend
        self.replacement = replacement  # None: run the module's own forward, in our scope
        self.previous = module.__dict__.get("forward")  # an instance-level forward that was there before us
        self.own: Callable[..., Any] = type(module).forward  # kept: dynamo cannot look it up on every class
        self.active = True
        self.owner = owner  # which `apply` left it
        self.proven = proven  # the child on whose meaning the replacement relies, while it is that child
        self.asking = needs_sdpa and in_diffusers.asks(module)
        self.processed = self.asking or (needs_sdpa and processors.processor_of(module) is not None)
        self.needs_sdpa = needs_sdpa
        self.holds = self._hold()
        self.memo: tuple[Dispatcher, Dispatcher] | None = None
        in_diffusers.find_dispatcher()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["memo"] = None
        del state["holds"]
        del state["own"]  # a function need not be found by its name where the class is
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.own = type(self.module).forward
        self.holds = self._hold() if self.active else ()
        in_diffusers.find_dispatcher()

    def _hold(self) -> tuple[Hold, ...]:
        """What must stay exchanged in torch and in diffusers while this hook is in force."""
        if not self.needs_sdpa:
            return ()
        return (torch_hook.hold(), native.hold()) if self.processed else (torch_hook.hold(),)

    def give_back(self) -> None:
        """Undo what was changed on the module besides its forward."""

    def enter(self) -> Any:
        """Make this layer's dispatcher the one in force; returns what `leave` takes."""
        parent = current()
        memo = self.memo
        if memo is None or memo[0] is not parent:
            memo = self.memo = (parent, self._derive(parent))
        return None if memo[1] is parent else ACTIVE.set(memo[1])

    def _derive(self, parent: Dispatcher) -> Dispatcher:
        settings, scope = parent.settings, parent.scope
        if self.backend is not None:
            settings = preferring(parent, self.backend)
        # Bindings are per dispatcher, so a layer gets one of its own only where a rule can tell layers apart.
        if any(rule.role or rule.layer for rule in settings.rules):
            scope = Scope(self.role or scope.role, self.layer)
        return parent.derive(settings, scope)

    def attend(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward, with every attention inside it served by the registry."""
        if not self.active:
            return self.stock(*args, **kwargs)
        if self.processed and in_diffusers.names_a_backend(self.module, self.asking):
            return self._leave_alone(*args, **kwargs)
        if is_compiling():
            _tell_compiled(self.backend)
            torch_hook.STATE.tracing += 1
            try:
                return self.stock(*args, **kwargs)
            finally:
                torch_hook.STATE.tracing -= 1
        token = self.enter()
        who = torch_hook.WHO.set(torch_hook.OURS)
        try:
            return self.stock(*args, **kwargs)
        finally:
            torch_hook.WHO.reset(who)
            leave(token)

    def _leave_alone(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward where somebody named its backend, also inside a module that is served."""
        if is_compiling():
            tracing, torch_hook.STATE.tracing = torch_hook.STATE.tracing, 0
            try:
                return self.stock(*args, **kwargs)
            finally:
                torch_hook.STATE.tracing = tracing
        who = torch_hook.WHO
        token = who.set(torch_hook.DEFAULT) if who.get() is torch_hook.OURS else None
        try:
            return self.stock(*args, **kwargs)
        finally:
            if token is not None:
                who.reset(token)

    def replaced(self, *args: Any, **kwargs: Any) -> Any:
        """The replacement of a module's forward; its own under autocast, whose dtype rules are torch's."""
        if not self.active or self.replacement is None or _any_autocast():
            return self.stock(*args, **kwargs)
        first = args[0] if args else next(iter(kwargs.values()), None)
        if is_compiling():
            if first is None or _has_own_rules(first) or _is_odd(self.module):
                return self.stock(*args, **kwargs)
            _tell_compiled(self.backend)
            return self.replacement(self.module, *args, **kwargs)
        if first is None or not is_plain(first):  # nested, DTensor, meta, tangents: torch has rules for them
            return self.stock(*args, **kwargs)
        token = self.enter()
        try:
            return self.replacement(self.module, *args, **kwargs)
        except (TypeError, ValueError) as error:
            if not is_refused(error):
                raise
        finally:
            leave(token)
        return self.stock(
            *args, **kwargs
        )  # a negative eps, a wrong shape: the result, or the error, is torch's

    def stock(self, *args: Any, **kwargs: Any) -> Any:
        """What the module did before."""
        if self.previous is not None:
            return self.previous(*args, **kwargs)
        return self.own(self.module, *args, **kwargs)


def _has_own_rules(x: Any) -> bool:
    """The same while dynamo traces, where every tensor is a fake one: nested tensors and DTensor are told apart."""
    return isinstance(x, torch.Tensor) and (x.is_nested or type(x).__name__ == "DTensor")


def _is_odd(module: nn.Module) -> bool:
    """Whether a norm, or the one inside it, has an eps that our ops refuse: compiled code cannot try and fall back."""
    for norm in (module, getattr(module, "norm", None)):
        for name in ("eps", "variance_epsilon"):
            eps = getattr(norm, name, 0.0)
            if not isinstance(eps, int | float) or not 0.0 <= eps < float("inf"):
                return True
    return False


@torch.compiler.assume_constant_result  # runs while dynamo traces, and leaves nothing in the graph
def _tell_compiled(backend: str | None) -> bool:
    if backend is not None or any(rule.role or rule.layer for rule in current().settings.rules):
        warn_once(
            "integrations.compiled",
            "apply: the model is compiled, and compiled code does not see rules by role or layer, nor "
            f"apply(backend={backend!r}); choose with sgl_kernels.use(...) around the compiled call",
        )
    return True


def leave(token: Any) -> None:
    """Undo `Hook.enter`."""
    if token is not None:
        ACTIVE.reset(token)


def preferring(parent: Dispatcher, backend: str) -> Any:
    """`parent`'s settings with a preference. Raises ConfigError for a name that does not exist."""
    return parent.settings.override(
        backend=backend,
        known_backends=parent.registry.backends(),
        known_ops=tuple(parent.registry.ops()),
        origin="apply(backend=...)",
    )


def found(module: nn.Module) -> Hook | None:
    """The hook on a module, if its forward still leads to it."""
    hook = module.__dict__.get(HOOK)
    return hook if isinstance(hook, Hook) else None


def is_ours(module: nn.Module) -> bool:
    """Whether the instance-level forward of a module is one of ours."""
    return isinstance(getattr(module.__dict__.get("forward"), "__self__", None), Hook)


def attach(hook: Hook, forward: Callable[..., Any]) -> None:
    """Put `hook.attend` or `hook.replaced` in the place of its module's forward."""
    object.__setattr__(hook.module, HOOK, hook)
    object.__setattr__(hook.module, "forward", forward)


def detach(module: nn.Module) -> None:
    """Give a module its forward back."""
    hook = found(module)
    if hook is None:
        return
    if hook.module is not module:  # a shallow copy took the dictionary along: what it leads to stays as it is
        if is_ours(module):
            _give_back(module, hook)
        module.__dict__.pop(HOOK, None)
        return
    hook.active = False
    hook.give_back()
    for hold in hook.holds:
        hold.release()
    if is_ours(module):
        _give_back(module, hook)
    elif "forward" in module.__dict__:
        return  # somebody wrapped us: stay in the chain, inactive
    module.__dict__.pop(HOOK, None)


def _give_back(module: nn.Module, hook: Hook) -> None:
    if hook.previous is not None:
        object.__setattr__(module, "forward", hook.previous)
    else:
        del module.__dict__["forward"]


calls_attention = processors.calls_attention


def role_of(name: str, module: nn.Module) -> str:
    """'cross' where a module attends to another sequence, else 'self'.

    What the module says of itself decides; else the words of its own name and of its class: EncDecAttention is
    one, AcrossFrames is none.
    """
    cross = getattr(module, "is_cross_attention", None)
    if isinstance(cross, bool):
        return "cross" if cross else "self"
    own = (name.rpartition(".")[2], type(module).__name__)
    words = {w.lower() for part in own for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", part)}
    if (
        words & {"cross", "crossattention", "crossattn"}
        or {"enc", "dec"} <= words
        or own[0] == "encoder_attn"
    ):
        return "cross"
    return "self"
