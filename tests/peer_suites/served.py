"""A pytest plugin for transformers' own tests: every model that a test makes is set to our name, or applied.

Loaded by its bare name from its own folder: a checkout of transformers has a package `tests` too.
What a test asks for by name ("sdpa", "eager") stays as it asked under `name`; under `apply` all of it is applied.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from installed import pytest_runtest_logreport, pytest_sessionfinish
from transformers import PreTrainedModel

import sgl_kernels

__all__ = ["pytest_runtest_logreport", "pytest_sessionfinish"]

_HOW = os.environ["SGL_KERNELS_PEER_HOW"]
_depth = 0  # of models within models, and of loading


@contextmanager
def _inside() -> Iterator[None]:
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def _finish(model: Any) -> None:
    """The outermost model is whole: serve it."""
    if _depth:
        return
    if _HOW == "apply":
        sgl_kernels.apply(model)
    elif getattr(model.config, "_attn_implementation", None) == "sdpa":
        model.set_attn_implementation("sgl_kernels")


def _wrap(cls: Any) -> None:
    """Let a class finish what its own `__init__` builds."""
    init = cls.__dict__.get("__init__")
    if init is None or hasattr(init, "sgl_kernels_wrapped"):
        return

    @functools.wraps(init)
    def built(self: Any, *args: Any, **kwargs: Any) -> None:
        with _inside():
            init(self, *args, **kwargs)
        _finish(self)

    built.sgl_kernels_wrapped = True  # type: ignore[attr-defined]
    cls.__init__ = built


def _everywhere() -> None:
    """Every class there is and every one that a test will define; loading counts as one building."""
    subclassed, loaded = (
        getattr(PreTrainedModel, name).__func__ for name in ("__init_subclass__", "from_pretrained")
    )

    def init_subclass(cls: Any, **kwargs: Any) -> None:
        subclassed(cls, **kwargs)
        _wrap(cls)

    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        with _inside():
            result = loaded(cls, *args, **kwargs)
        if _HOW == "apply" or kwargs.get("attn_implementation") is None:
            _finish(result[0] if isinstance(result, tuple) else result)
        return result

    PreTrainedModel.__init_subclass__ = classmethod(init_subclass)  # type: ignore[assignment]
    PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment]
    pending = PreTrainedModel.__subclasses__()
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        _wrap(cls)


if _HOW == "name":
    sgl_kernels.install("transformers")
if _HOW in ("name", "apply"):
    _everywhere()
