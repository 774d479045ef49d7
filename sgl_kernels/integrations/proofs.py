"""What a module computes, proven before it is served: its own code run on inputs that tell every other formula apart.

Names and attributes prove nothing: of some three hundred norm classes in transformers most scale by the weight, some
by 1 + weight, a few gate, group or ignore it; a gated MLP is the same class with any of twenty activations. So the
class's forward runs on a shell: an object of the class with the module's plain settings and with parameters of its
own, float64 on the CPU, which never share memory with the model's (those may be on meta, offloaded or quantised).
Children are replaced by plain functions that hand out chosen values and note what they are given. A probe that
raises anything proves nothing, and the layer stays as it is.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from sgl_kernels.integrations.modules import HOOK

_SIMPLE = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_HALVES = (torch.float32, torch.bfloat16, torch.float16)
_RTOL = 1e-5  # many compute in float32 inside; what must be told apart differs by 1e-4 and more somewhere


class NotProvenError(Exception):
    """The module computes something else, or something that cannot be found out."""


@contextmanager
def _laboratory() -> Iterator[None]:
    """Nothing of the caller's surroundings reaches a probe, and the probe moves no random numbers."""
    with ExitStack() as stack:
        stack.enter_context(_disable_current_modes())  # such as fake tensors, with which nothing is proven
        stack.enter_context(torch.random.fork_rng(devices=[]))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        yield


def attempt(proof: Callable[[], Any]) -> Any:
    """What a proof finds, or None: whatever it raises, the model is left alone."""
    try:
        with _laboratory():
            return proof()
    except Exception:  # foreign code on foreign inputs may raise anything
        return None


def shell(module: nn.Module, dtype: torch.dtype, values: dict[str, Tensor]) -> Any:
    """An object of the module's class with its plain settings, no children, and parameters with the given values."""
    made = type(module).__new__(type(module))
    nn.Module.__init__(made)
    for name, value in module.__dict__.items():
        if name in made.__dict__ or name in ("forward", HOOK):
            continue
        if isinstance(value, Tensor):
            raise NotProvenError("a tensor outside the parameters")
        made.__dict__[name] = value if isinstance(value, _SIMPLE) else _detached(value)
    for name, parameter in module._parameters.items():
        if parameter is not None and type(parameter) is not nn.Parameter:
            raise NotProvenError(f"{name} is a {type(parameter).__name__}")
        made._parameters[name] = None if parameter is None else nn.Parameter(values[name].to(dtype))
    if any(b is not None for b in module._buffers.values()):
        raise NotProvenError("buffers")
    made.__dict__["training"] = module.training
    return made


def _detached(value: Any) -> Any:
    """Containers are copied, since a forward may fill them; other objects (a configuration, a function) are read."""
    return copy.deepcopy(value) if isinstance(value, (list, dict, set, tuple)) else value


def _call(made: Any, *args: Tensor) -> Any:
    return type(made).forward(made, *args)


def _both_modes(made: Any) -> Iterator[None]:
    for training in (False, True):
        made.__dict__["training"] = training
        yield


def _agree(have: Any, want: Tensor, scale: Tensor | None = None, rtol: float = _RTOL) -> None:
    """Elementwise, relative to `scale`, or to the value itself."""
    if type(have) is not Tensor or have.shape != want.shape:
        raise NotProvenError("another shape")
    bound = rtol * (want.abs() if scale is None else scale) + 1e-12
    if not bool(((have.double() - want.double()).abs() <= bound).all()):
        raise NotProvenError("other values")


def _draw(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


# --- x / rms(x) * (weight + offset) ----------------------------------------------------------------


_offsets: dict[Any, float | None] = {}


def rms_offset(module: nn.Module) -> float | None:
    """0.0 or 1.0 for a norm that is x / rms(x) * (weight + offset) over the last dimension, else None."""
    key = _settings(module)
    if key is None or key not in _offsets:
        found = next((o for o in (0.0, 1.0) if attempt(functools.partial(_prove_rms, module, o))), None)
        if key is None:
            return found
        _offsets[key] = found
    return _offsets[key]


def _settings(module: nn.Module) -> Any:
    """All that a shell takes from a module, as a key; None where that is more than plain values."""
    plain = {k: v for k, v in module.__dict__.items() if k not in _INTERNALS and k not in ("forward", HOOK)}
    if not all(isinstance(v, _SIMPLE) for v in plain.values()):
        return None
    tensors = tuple((n, None if p is None else (type(p), p.shape)) for n, p in module._parameters.items())
    others = (tuple(module._buffers), tuple(module._modules))
    return (
        type(module),
        type(module).forward,
        tuple((k, type(v), v) for k, v in plain.items()),
        tensors,
        others,
    )


_INTERNALS = frozenset(nn.Module().__dict__)


def eps_name(module: Any) -> str:
    """The attribute an RMS norm of transformers keeps its epsilon in."""
    return "eps" if getattr(module, "variance_epsilon", None) is None else "variance_epsilon"


def _prove_rms(module: nn.Module, offset: float) -> bool:
    weight = module._parameters.get("weight")
    eps = module.__dict__.get(eps_name(module))
    if weight is None or weight.ndim != 1 or module._modules or not isinstance(eps, float):
        raise NotProvenError("not of the kind")
    n = weight.shape[0]
    values = {  # all distinct, of both signs, none near 0 or 1
        name: (_draw(tuple(p.shape), seed).abs() + 0.3)
        * torch.where(_draw(tuple(p.shape), seed + 50) > 0, 1.0, -1.0)
        for seed, (name, p) in enumerate(module._parameters.items(), 1)
        if p is not None
    }
    made = shell(module, torch.float64, values)
    w = made._parameters["weight"]
    before = dict(made.__dict__)
    for shape in ((4, n), (2, 3, n), (2, 2, 3, n)):
        # Rows from far below the square root of epsilon to far above it, none of mean zero.
        sizes = torch.logspace(-4, 2, math.prod(shape[:-1]), dtype=torch.float64)
        x = ((_draw(shape, 9) + 0.5) * sizes.view(*shape[:-1], 1)).requires_grad_()
        for told in (eps, 0.37):  # whatever the attribute says must be what is added
            made.__dict__[eps_name(module)] = told
            for _ in _both_modes(made):
                given = x.detach().clone().requires_grad_()
                have = _call(made, given)
                if have.dtype is not x.dtype or not torch.equal(given, x):
                    raise NotProvenError("another dtype, or its input is changed")
                want = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + told) * (w + offset)
                _agree(have, want)
            if len(shape) == 3:
                toward = _draw(shape, 11)
                ours = torch.autograd.grad(want, (x, w), toward)
                for theirs, mine in zip(torch.autograd.grad(have, (given, w), toward), ours, strict=True):
                    _agree(theirs, mine, mine.abs().max(), 1e-4)
        made.__dict__[eps_name(module)] = eps
    made.__dict__["training"] = before["training"]
    if made.__dict__ != before:
        raise NotProvenError("it remembers")
    for dtype in _HALVES:
        half = shell(module, dtype, values)
        if _call(half, _draw((2, 3, n), 9).to(dtype)).dtype is not dtype:
            raise NotProvenError("another dtype")
    return True


# --- down(act(gate(x)) * up(x)), act(dense(x)) ------------------------------------------------------

_GATES = torch.cat(
    [
        torch.linspace(-20, 20, 401, dtype=torch.float64, device="cpu"),
        torch.tensor(
            [s * v for v in (1e-6, 1e-3, 0.017, 33.3, 77.7, 301.0, 1e3, 6.6e4, 1e6) for s in (1.0, -1.0)],
            device="cpu",
        ).double(),
    ]
)
"""Where activations are told apart: dense where they bend, and far out where the clamped ones stop."""
_VALUES = torch.tensor([1.0, -1.0, 0.3, 6.9, -7.6, 11.3, -53.0, 1e3, -7e4], dtype=torch.float64, device="cpu")


def is_silu_gated(module: nn.Module) -> bool:
    """Whether a module is down_proj(silu(gate_proj(x)) * up_proj(x)) for whatever its three projections are."""
    return bool(attempt(lambda: _prove_gated(module)))


def is_gelu_of_dense(module: nn.Module) -> bool:
    """Whether a module is gelu(dense(x)), by the exact GELU."""
    return bool(attempt(lambda: _prove_dense(module)))


def _activation(module: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    """The child's own forward, on a shell. What it holds could change what it computes, so it may hold nothing."""
    act: Any = module._modules[name]
    if act._parameters or act._buffers or act._modules or "forward" in act.__dict__:
        raise NotProvenError("an activation with a state")
    made = shell(act, torch.float64, {})
    return lambda t: type(made).forward(made, t)  # type: ignore[no-any-return]


def _prove_gated(module: nn.Module) -> bool:
    if any(p is not None for p in module._parameters.values()):
        raise NotProvenError("parameters of its own")
    grid = (_GATES[:, None].expand(-1, len(_VALUES)), _VALUES[None].expand(len(_GATES), -1))
    gate, up = (t.reshape(1, len(_GATES), -1) for t in grid)
    _gated(module, torch.float64, gate, up)
    near = (gate.abs() <= 301) & (
        up.abs() <= 1e3
    )  # a half type stops at 65504, which a careful author clamps to
    for dtype in _HALVES:
        _gated(module, dtype, *(t[near].reshape(1, 1, -1) for t in (gate, up)))
    return True


def _gated(module: nn.Module, dtype: torch.dtype, gate: Tensor, up: Tensor) -> None:
    made = shell(module, dtype, {})
    x, end = _draw((1, 5, 4), 3).to(dtype), _draw((1, 5, 4), 4).to(dtype)
    gate, up = (t.to(dtype).requires_grad_() for t in (gate, up))
    seen: list[tuple[str, Tensor]] = []

    def child(name: str, gives: Tensor) -> Callable[[Tensor], Tensor]:
        def called(t: Tensor) -> Tensor:
            seen.append((name, t))
            return gives.clone()

        return called

    made.__dict__.update(
        gate_proj=child("gate", gate),
        up_proj=child("up", up),
        down_proj=child("down", end),
        act_fn=_activation(module, "act_fn"),
    )
    for _ in _both_modes(made):
        seen.clear()
        if not torch.equal(_call(made, x.clone()), end):
            raise NotProvenError("more after the last projection")
        given = dict(seen)
        if len(seen) != 3 or not (torch.equal(given["gate"], x) and torch.equal(given["up"], x)):
            raise NotProvenError("more before the projections")
        inner = given["down"]
        if inner.dtype is not dtype:
            raise NotProvenError("another dtype")
        g, u = gate.double(), up.double()
        size = (1 + g.abs()) * u.abs()
        if dtype is not torch.float64:
            want = (F.silu(g) * u).to(dtype).double()
            finite = want.isfinite()
            if not torch.equal(finite, inner.isfinite()):
                raise NotProvenError("another range")
            _agree(inner[finite], want[finite], size[finite], 4 * torch.finfo(dtype).eps)
            continue
        _agree(inner, F.silu(g) * u, size, 1e-6)
        for ours, theirs in zip(
            torch.autograd.grad((F.silu(g) * u).sum(), (gate, up)),
            torch.autograd.grad(inner.sum(), (gate, up)),
            strict=True,
        ):
            _agree(theirs, ours, (1 + ours.abs()) * (1 + u.abs()), 1e-6)


def _prove_dense(module: nn.Module) -> bool:
    if any(p is not None for p in module._parameters.values()):
        raise NotProvenError("parameters of its own")
    for dtype in (torch.float64, *_HALVES):
        made = shell(module, dtype, {})
        x = _draw((1, 5, 4), 3).to(dtype)
        near = _GATES[_GATES.abs() <= 301] if dtype is not torch.float64 else _GATES
        dense = near.reshape(1, 1, -1).to(dtype).requires_grad_()
        seen: list[Tensor] = []

        def called(t: Tensor, gives: Tensor = dense, seen: list[Tensor] = seen) -> Tensor:
            seen.append(t)
            return gives.clone()

        made.__dict__.update(dense=called, intermediate_act_fn=_activation(module, "intermediate_act_fn"))
        for _ in _both_modes(made):
            seen.clear()
            have = _call(made, x.clone())
            if len(seen) != 1 or not torch.equal(seen[0], x) or have.dtype is not dtype:
                raise NotProvenError("more around the projection")
            g = dense.double()
            want = F.gelu(g)
            _agree(have, want, 1 + g.abs(), 1e-6 if dtype is torch.float64 else 4 * torch.finfo(dtype).eps)
            if dtype is torch.float64:
                ours, theirs = (torch.autograd.grad(t.sum(), dense)[0] for t in (want, have))
                _agree(theirs, ours, 1 + ours.abs(), 1e-6)
    return True
