"""Replacements for linear layers and the activations behind them: one call, one rounding.

As in norms.py, a replacement runs only where it means exactly what the module meant, and calls the module's own
forward elsewhere. Under torch.compile it is the module's own forward too: the compiler fuses these by itself.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from sgl_kernels.core.device import Device, probe
from sgl_kernels.core.registry import registry
from sgl_kernels.integrations.modules import is_ours
from sgl_kernels.integrations.norms import Replacement, _fits, _stock
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
    return not is_compiling() and type(x) in _PLAIN and _projects(proj) and _fits(x, proj.weight, proj.bias)


def torch_linear(self: nn.Linear, input: Tensor) -> Tensor:
    """nn.Linear."""
    weight, bias = self.weight, self.bias
    if (
        is_compiling()
        or type(input) not in _PLAIN
        or type(weight) not in _PLAIN
        or not _fits(input, weight, bias)
    ):
        return _stock(self, input)  # type: ignore[no-any-return]
    return linear(input, weight, bias)


def torch_gelu(self: nn.GELU, input: Tensor) -> Tensor:
    """nn.GELU by its tanh approximation."""
    if is_compiling() or type(input) not in _PLAIN:
        return _stock(self, input)  # type: ignore[no-any-return]
    return gelu_tanh(input)


# --- diffusers' ------------------------------------------------------------------------------------


def gelu_projection(self: Any, hidden_states: Tensor) -> Tensor:
    """GELU: a projection and the activation."""
    proj = self.proj
    if not _ready(hidden_states, proj):
        return _stock(self, hidden_states)  # type: ignore[no-any-return]
    activation = "gelu_tanh" if self.approximate == "tanh" else "gelu"
    return linear(hidden_states, proj.weight, proj.bias, activation=activation)


def silu_projection(self: Any, hidden_states: Tensor) -> Tensor:
    """LinearActivation with SiLU."""
    proj = self.proj
    if not _ready(hidden_states, proj) or type(self.activation) is not nn.SiLU or _watched(self.activation):
        return _stock(self, hidden_states)  # type: ignore[no-any-return]
    return linear(hidden_states, proj.weight, proj.bias, activation="silu")


def gelu_gate(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """GEGLU: the second half of the projection gates the first, by the exact GELU (on an NPU by another one)."""
    if args or kwargs or is_compiling() or hidden_states.device.type == "npu":
        return _stock(self, hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
    value, gate = self.proj(hidden_states).chunk(2, dim=-1)
    return gelu_mul(gate, value, approximate="none")


def silu_gate(self: Any, hidden_states: Tensor) -> Tensor:
    """SwiGLU: the second half of the projection gates the first."""
    if is_compiling() or type(self.activation) is not nn.SiLU or _watched(self.activation):
        return _stock(self, hidden_states)  # type: ignore[no-any-return]
    value, gate = self.proj(hidden_states).chunk(2, dim=-1)
    return silu_mul(gate, value)


DIFFUSERS: dict[str, Replacement] = {
    "GELU": gelu_projection,
    "LinearActivation": silu_projection,
    "GEGLU": gelu_gate,
    "SwiGLU": silu_gate,
}
"""Class of diffusers.models.activations -> replacement of its forward."""


# --- transformers' ---------------------------------------------------------------------------------


def gelu_intermediate(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A transformers *Intermediate that `_form` found to be gelu(dense(x))."""
    dense = self.dense
    if args or kwargs or not _ready(hidden_states, dense) or _watched(self.intermediate_act_fn):
        return _stock(self, hidden_states, *args, **kwargs)
    return linear(hidden_states, dense.weight, dense.bias, activation="gelu")


def silu_gated_mlp(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A transformers *MLP that `_form` found to be down_proj(silu(gate_proj(x)) * up_proj(x))."""
    if args or kwargs or is_compiling() or _watched(self.act_fn):
        return _stock(self, x, *args, **kwargs)
    return self.down_proj(silu_mul(self.gate_proj(x), self.up_proj(x)))


def _form(module: Any) -> Replacement | None:
    """A transformers feed-forward part by what it computes: run once on a small input, and compared."""
    name = type(module).__name__
    children = {n for n, _ in module.named_children()}
    candidate: Replacement
    if name.endswith("Intermediate") and children == {"dense", "intermediate_act_fn"}:
        first, candidate = module.dense, gelu_intermediate
    elif name.endswith("MLP") and children == {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        first, candidate = module.gate_proj, silu_gated_mlp
    else:
        return None
    if any(m._forward_hooks or m._forward_pre_hooks for m in module.modules()):
        return None  # they would see the small input
    if (
        not isinstance(first, nn.Linear)
        or type(first.weight) not in _PLAIN
        or first.weight.device.type == "meta"
    ):
        return None
    wave = torch.arange(2 * first.in_features, device=first.weight.device, dtype=torch.float32)
    x = (torch.sin(wave * 0.7) * 2 + 0.3).reshape(2, -1).to(first.weight.dtype)
    try:
        with torch.no_grad():
            want, have = _stock(module, x), candidate(module, x)
    except (TypeError, RuntimeError, ValueError, AttributeError):
        return None
    if not isinstance(want, Tensor) or want.shape != have.shape or want.dtype is not have.dtype:
        return None
    # Stock rounds up to twice more than ours; the other activations differ by 1e-3 of the largest value and up.
    tolerance = 8 * torch.finfo(x.dtype).eps * float(want.abs().max())
    return candidate if torch.allclose(have.double(), want.double(), rtol=0, atol=tolerance) else None


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
            if replacement is gelu_projection:
                activation = "gelu_tanh" if getattr(module, "approximate", "none") == "tanh" else "gelu"
                return replacement if _worth(module.proj, activation) else None
            if replacement is silu_projection:
                return replacement if _worth(module.proj, "silu") else None
            return replacement
    return None


def _worth(layer: Any, activation: str) -> bool:
    """Whether a backend before torch would serve this layer on a long input: a hook costs each call some us."""
    weight = getattr(layer, "weight", None)
    if type(weight) not in _PLAIN or not weight.is_floating_point() or weight.device.type == "meta":
        return False
    n, k = weight.shape
    facts = LinearFacts(weight.dtype, MANY_ROWS, n, k, layer.bias is not None, activation, False)
    device = probe(weight.device)
    return any(
        i.backend != "torch_sdpa" and i.rank_for(facts, device) > 0 and _runs(i.requires, facts, device)
        for i in registry.implementations("linear")
    )


def _runs(requires: Any, facts: LinearFacts, device: Device) -> bool:
    from sgl_kernels.core.packages import installed_version

    return requires.rejects(facts.dtype, device, installed_version) is None
