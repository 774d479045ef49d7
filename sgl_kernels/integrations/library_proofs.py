"""The parts of diffusers that have a replacement, proven once a process on an instance of the class.

A class is found by the function that is its forward, and the replacement was written after reading that function.
Another release may hold other code under the same name, and a subclass may exchange a method the forward calls. So
before the first layer of a class is served, a small one with random weights runs both ways: its own code, and ours on
torch's floor.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sgl_kernels.core.dispatch import Dispatcher, activate
from sgl_kernels.core.selection.policy import OpPolicy
from sgl_kernels.core.settings import Settings
from sgl_kernels.integrations.modules import HOOK, Hook
from sgl_kernels.integrations.proofs import NotProvenError, attempt

Make = Callable[[type], nn.Module]
_D, _E = 8, 12
_ONE = ((2, 5, _D),)
_TWO = ((2, 5, _D), (2, _D))

RECIPES: dict[str, tuple[tuple[Make, ...], tuple[tuple[int, ...], ...]]] = {
    "FP32LayerNorm": ((lambda c: c(_D, eps=1e-2), lambda c: c(_D, elementwise_affine=False)), _ONE),
    "RMSNorm": ((lambda c: c(_D, eps=1e-2), lambda c: c(_D, eps=1e-2, elementwise_affine=False)), _ONE),
    "MochiRMSNorm": ((lambda c: c(_D, eps=1e-2), lambda c: c(_D, eps=1e-2, elementwise_affine=False)), _ONE),
    "AdaLayerNormZero": ((lambda c: c(_D),), (*_ONE, (), (), (), (2, _D))),
    "AdaLayerNormZeroSingle": ((lambda c: c(_D),), _TWO),
    "AdaLayerNormContinuous": ((lambda c: c(_D, _D), lambda c: c(_D, _D, norm_type="rms_norm")), _TWO),
    "LuminaRMSNormZero": ((lambda c: c(_D, 1e-2, True),), _TWO),
    "GELU": ((lambda c: c(_D, _E), lambda c: c(_D, _E, approximate="tanh", bias=False)), _ONE),
    "LinearActivation": ((lambda c: c(_D, _E, activation="silu"),), _ONE),
    "GEGLU": ((lambda c: c(_D, _E),), _ONE),
    "SwiGLU": ((lambda c: c(_D, _E),), _ONE),
}
"""Class -> how to make some of it, and the shapes of what its forward takes; () is None."""


def replaces(
    cls: type, theirs: type, replacement: Callable[..., Any], inner: Callable[[nn.Module], Any]
) -> bool:
    """Whether a replacement computes what `cls` does, which is `theirs` or a subclass that changes none of its code.

    inner: what stands in for the children of such a module under `apply`.
    """
    return _same_code(cls, theirs) and _proven(theirs, replacement, inner)


@functools.cache
def _same_code(cls: type, theirs: type) -> bool:
    code = {n: f for n, f in vars(theirs).items() if isinstance(f, types.FunctionType) and n != "__init__"}
    return all(getattr(cls, name, None) is function for name, function in code.items())


@functools.cache
def _proven(theirs: type, replacement: Callable[..., Any], inner: Callable[[nn.Module], Any]) -> bool:
    return bool(attempt(lambda: _prove(theirs, replacement, inner)))


def _prove(theirs: type, replacement: Callable[..., Any], inner: Callable[[nn.Module], Any]) -> bool:
    recipes, shapes = RECIPES[theirs.__name__]
    quiet = Dispatcher(Settings(default=OpPolicy(prefer=("torch",))))  # no recorder, no log, no user's choice
    generator = torch.Generator().manual_seed(5)

    def draw(shape: tuple[int, ...]) -> Tensor | None:
        return torch.randn(shape, generator=generator) + 0.3 if shape else None

    for make in recipes:
        module = make(theirs)
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        for child in module.children():
            found = inner(child)
            if found is not None:
                object.__setattr__(child, HOOK, Hook(child, "", replacement=found))
        given = [draw(shape) for shape in shapes]
        # (weights, inputs): a norm may promise the dtype of either
        for weights, inputs in ((torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.float32, torch.bfloat16)):
            module.to(weights)
            cast = [None if t is None else t.to(inputs) for t in given]
            with torch.no_grad(), activate(quiet):
                try:
                    want = theirs.forward(module, *cast)  # type: ignore[attr-defined]
                except RuntimeError:
                    if weights is inputs:
                        raise
                    continue  # a product of two dtypes, which torch refuses and the replacement leaves to it
                _compare(replacement(module, *cast), want)
    return True


def _compare(have: Any, want: Any) -> None:
    if isinstance(want, tuple):
        if not isinstance(have, tuple) or len(have) != len(want):
            raise NotProvenError("another result")
        for h, w in zip(have, want, strict=True):
            _compare(h, w)
        return
    if have.dtype is not want.dtype or have.shape != want.shape:
        raise NotProvenError("another dtype or shape")
    tolerance = 1e-5 if want.dtype is torch.float32 else 0.1
    if not torch.allclose(have.float(), want.float(), rtol=tolerance, atol=tolerance):
        raise NotProvenError("other values")
