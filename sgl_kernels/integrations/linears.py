"""Replacements for linear layers and the activations behind them: one call, one rounding.

As in norms.py, a replacement runs only where it means exactly what the module meant, and calls the module's own
forward elsewhere. Under torch.compile it is the module's own forward too: the compiler fuses these by itself.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_compiling

from sgl_kernels.core.device import Device, probe
from sgl_kernels.core.registry import registry
from sgl_kernels.integrations import library_proofs, proofs
from sgl_kernels.integrations.modules import HOOK, is_ours
from sgl_kernels.integrations.norms import Replacement, fits, stock
from sgl_kernels.ops.activation.api import gelu_mul, gelu_tanh, silu_mul
from sgl_kernels.ops.linear.api import linear
from sgl_kernels.ops.linear.spec import LinearFacts

_PLAIN = (Tensor, nn.Parameter)
MANY_ROWS = 4096
"""Rows of the call that decides whether a layer is worth a replacement; each call is selected for its own rows."""


def _projects(proj: Any) -> bool:
    """Whether a module is a plain nn.Linear that nobody hooks into."""
    return (
        type(proj).forward is nn.Linear.forward
        and type(proj.weight) in _PLAIN
        and not proj._forward_hooks
        and not proj._forward_pre_hooks
        and ("forward" not in proj.__dict__ or is_ours(proj))
    )


def _watched(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _ready(x: Tensor, proj: Any) -> bool:
    """Whether `linear` gives what the layer would: plain tensors of one dtype, and no compiler watching."""
    return not is_compiling() and type(x) in _PLAIN and _projects(proj) and fits(x, proj.weight, proj.bias)


def torch_linear(self: nn.Linear, input: Tensor) -> Tensor:
    """nn.Linear."""
    weight, bias = self.weight, self.bias
    if (
        is_compiling()
        or type(input) not in _PLAIN
        or type(weight) not in _PLAIN
        or not fits(input, weight, bias)
    ):
        return stock(self, input)  # type: ignore[no-any-return]
    return linear(input, weight, bias)


def torch_gelu(self: nn.GELU, input: Tensor) -> Tensor:
    """nn.GELU by its tanh approximation."""
    if is_compiling() or type(input) not in _PLAIN or self.approximate != "tanh":
        return stock(self, input)  # type: ignore[no-any-return]
    return gelu_tanh(input)


# --- diffusers' ------------------------------------------------------------------------------------


def gelu_projection(self: Any, hidden_states: Tensor) -> Tensor:
    """GELU: a projection and the activation."""
    proj = self.proj
    if not _ready(hidden_states, proj):
        return stock(self, hidden_states)  # type: ignore[no-any-return]
    activation = "gelu_tanh" if self.approximate == "tanh" else "gelu"
    return linear(hidden_states, proj.weight, proj.bias, activation=activation)


def silu_projection(self: Any, hidden_states: Tensor) -> Tensor:
    """LinearActivation with SiLU."""
    proj = self.proj
    if not _ready(hidden_states, proj) or type(self.activation) is not nn.SiLU or _watched(self.activation):
        return stock(self, hidden_states)  # type: ignore[no-any-return]
    return linear(hidden_states, proj.weight, proj.bias, activation="silu")


def gelu_gate(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """GEGLU: the second half of the projection gates the first, by the exact GELU (on an NPU by another one)."""
    if args or kwargs or is_compiling() or hidden_states.device.type == "npu":
        return stock(self, hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
    both = self.proj(hidden_states)
    value, gate = both.chunk(2, dim=-1)
    if type(both) not in _PLAIN:
        return value * self.gelu(gate)  # type: ignore[no-any-return]
    return gelu_mul(gate, value, approximate="none")


def silu_gate(self: Any, hidden_states: Tensor) -> Tensor:
    """SwiGLU: the second half of the projection gates the first."""
    if is_compiling() or type(self.activation) is not nn.SiLU or _watched(self.activation):
        return stock(self, hidden_states)  # type: ignore[no-any-return]
    both = self.proj(hidden_states)
    value, gate = both.chunk(2, dim=-1)
    if type(both) not in _PLAIN:
        return value * self.activation(gate)  # type: ignore[no-any-return]
    return silu_mul(gate, value)


DIFFUSERS: dict[str, Replacement] = {
    "GELU": gelu_projection,
    "LinearActivation": silu_projection,
    "GEGLU": gelu_gate,
    "SwiGLU": silu_gate,
}
"""Class of diffusers.models.activations -> replacement of its forward."""


# --- transformers' ---------------------------------------------------------------------------------


def gelu_intermediate(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A transformers *Intermediate that is proven to be gelu(dense(x))."""
    dense, act = self.dense, self.intermediate_act_fn
    if kwargs or len(args) != 1 or not _ready(args[0], dense) or _watched(act) or not _proven(self, act):
        return stock(self, *args, **kwargs)
    return linear(args[0], dense.weight, dense.bias, activation="gelu")


def silu_gated_mlp(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A transformers *MLP that is proven to be down_proj(silu(gate_proj(x)) * up_proj(x))."""
    act = self.act_fn
    if kwargs or len(args) != 1 or is_compiling() or _watched(act) or not _proven(self, act):
        return stock(self, *args, **kwargs)
    gate, up = self.gate_proj(args[0]), self.up_proj(args[0])
    if type(gate) not in _PLAIN or type(up) not in _PLAIN or gate.dtype is not up.dtype:
        return self.down_proj(act(gate) * up)
    return self.down_proj(silu_mul(gate, up))


def _proven(module: Any, act: Any) -> bool:
    """Whether the activation is still the one that was there when the formula was proven."""
    hook = module.__dict__.get(HOOK)
    return hook is not None and hook.proven is act


def relies_on(module: nn.Module) -> Any:
    """The child whose meaning a replacement takes for granted, or None."""
    return module._modules.get("act_fn", module._modules.get("intermediate_act_fn"))


def _form(module: Any) -> Replacement | None:
    """The replacement for a feed-forward part of transformers by what it computes, or None."""
    name = type(module).__name__
    children = {n for n, _ in module.named_children()}
    if any(p.is_meta for p in module.parameters()):
        return None  # nothing runs; whoever fills it applies then
    if any(m._forward_hooks or m._forward_pre_hooks for m in module.children()):
        return None  # such as those that move weights in and out: stock calls them as their author expects
    if name.endswith("Intermediate") and children == {"dense", "intermediate_act_fn"}:
        plain = type(module.dense).forward is nn.Linear.forward
        return gelu_intermediate if plain and proofs.is_gelu_of_dense(module) else None
    if name.endswith("MLP") and children == {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return silu_gated_mlp if proofs.is_silu_gated(module) else None
    return None


# --- which ----------------------------------------------------------------------------------------


def replacement_for(module: nn.Module) -> Replacement | None:
    """The replacement for a module, by the function that is its class's forward: subclasses keep their own."""
    cls = type(module)
    forward: Any = cls.forward
    if forward is nn.Linear.forward:
        return torch_linear if _worth(module, "none") else None
    if forward is nn.GELU.forward:
        return torch_gelu if getattr(module, "approximate", "none") == "tanh" else None
    if cls.__module__.split(".")[0] == "transformers":
        found = _form(module)
        worth = found is not gelu_intermediate or _worth(module.dense, "gelu")
        return found if worth else None
    library = sys.modules.get("diffusers.models.activations")
    for name, replacement in DIFFUSERS.items():
        theirs = getattr(library, name, None)
        if theirs is not None and forward is theirs.forward:
            if not library_proofs.replaces(cls, theirs, replacement, _nothing):
                return None
            if replacement is gelu_projection:
                activation = "gelu_tanh" if getattr(module, "approximate", "none") == "tanh" else "gelu"
                return replacement if _worth(module.proj, activation) else None
            if replacement is silu_projection:
                return replacement if _worth(module.proj, "silu") else None
            return replacement
    return None


def _nothing(module: nn.Module) -> None:
    """No child of these is replaced for its own sake."""


def _worth(layer: Any, activation: str) -> bool:
    """Whether a backend before torch would serve this layer on a long input: a hook costs each call some us."""
    weight = getattr(layer, "weight", None)
    if (
        weight is None
        or type(weight) not in _PLAIN
        or not weight.is_floating_point()
        or weight.device.type == "meta"
    ):
        return False
    n, k = weight.shape
    facts = LinearFacts(weight.dtype, MANY_ROWS, n, k, layer.bias is not None, activation, False)
    device = probe(weight.device)
    return any(
        i.backend != "torch" and i.rank_for(facts, device) > 0 and _runs(i.requires, facts, device)
        for i in registry.implementations("linear")
    )


def _runs(requires: Any, facts: LinearFacts, device: Device) -> bool:
    from sgl_kernels.core.selection.packages import installed_version

    return requires.rejects(facts.dtype, device, installed_version) is None
