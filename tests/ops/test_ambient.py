"""Every argument and every ambient state, cold and warm, eager and compiled: the same answer, dtype or error."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor

import sgl_kernels
from sgl_kernels.core.registry import registry
from tests.ops.test_fingerprint import replaced, smoke

OPS = registry.ops()
STATES = {
    "plain": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast bf16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast fp16": lambda: torch.autocast("cpu", torch.float16),
    "autocast elsewhere": lambda: torch.autocast("xpu", torch.bfloat16),
}
WRONG = {
    "float": (float("nan"), float("inf"), "text", torch.tensor(0.5), [1.0]),
    "int": (-7, 1.5, "text", None),
    "bool": ("yes", None, 2.5),
    "str": ("nonsense", 3, None),
}


def overload(name):
    return getattr(torch.ops.sgl_kernels, name).default


def door(name):
    """The front door with arguments in schema order."""
    from sgl_kernels.ops._front import DOORS

    return lambda *args: DOORS[name](args, None, None)


def outs(value):
    return value if isinstance(value, tuple) else (value,)


def told(call, *args):
    """The result, or the type and text of the error."""
    try:
        return outs(call(*args))
    except Exception as error:
        return type(error), str(error)


def same(a, b):
    if isinstance(a[0], type) or isinstance(b[0], type):
        assert a == b
        return
    for x, y in zip(a, b, strict=True):
        assert x.dtype is y.dtype
        torch.testing.assert_close(x, y, equal_nan=True)


def values(argument, value):
    """Other right and wrong values of an argument that is no tensor."""
    kind = argument.kind.removeprefix("Optional[").removesuffix("]")
    yield from WRONG[kind]
    if kind == "float":
        yield from (0.25, 2)
    if kind == "bool":
        yield not value


@pytest.mark.parametrize("name", OPS)
def test_a_warm_memo_answers_as_a_cold_one(name):
    op, args = registry.op(name), smoke(name)
    if name == "nvfp4_quantize":
        args = replaced(args, 3, False)
    call = door(name)
    for i, argument in enumerate(op.arguments):
        if argument.is_tensor:
            continue
        for value in values(argument, args[i]):
            changed = replaced(args, i, value)
            if argument.name == "stochastic" and value is True:
                continue  # random by its meaning
            sgl_kernels.configure()
            cold = told(call, *changed)
            sgl_kernels.configure()
            told(call, *args)
            told(call, *changed)
            same(told(call, *changed), cold)


@pytest.mark.parametrize("first", STATES)
@pytest.mark.parametrize("name", OPS)
def test_the_first_state_does_not_stick(name, first):
    args, call = smoke(name), door(name)
    sgl_kernels.configure()
    with STATES[first]():
        told(call, *args)
    warm = {}
    for state, enter in STATES.items():
        with enter():
            warm[state] = told(call, *args)
    for state, enter in STATES.items():
        sgl_kernels.configure()
        with enter():
            same(told(call, *args), warm[state])


@pytest.mark.parametrize("name", OPS)
def test_autocast_lowers_what_follows_it_and_nothing_else(name):
    op, args = registry.op(name), smoke(name)
    for backend in (None, "torch"):
        with torch.autocast("cpu", torch.bfloat16):
            got = outs(overload(name)(*args, backend=backend))[0].dtype
        plain = outs(overload(name)(*args))[0].dtype
        assert got is (torch.bfloat16 if op.autocast else plain), backend


@pytest.mark.parametrize("state", ["plain", "no_grad", "autocast bf16", "autocast fp16"])
@pytest.mark.parametrize("name", OPS)
def test_compiled_is_as_eager(name, state):
    torch._dynamo.reset()
    args, call = smoke(name), door(name)
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    with STATES[state]():
        want, got = told(call, *args), told(compiled, *args)
    same(got, want)


def test_autocast_inside_a_compiled_function():
    q = torch.randn(1, 9, 2, 16)

    def f(q: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return sgl_kernels.attention(q, q, q)

    got = torch.compile(f, backend="aot_eager", fullgraph=True)(q)
    assert got.dtype is torch.bfloat16
    torch.testing.assert_close(got, f(q))
