"""Which attention a module runs, read from the code of its processor: torch's SDPA, diffusers' dispatcher, or neither.

A name proves nothing here. Linear, sliced and sub-quadratic processors have the same attributes as the others and
never come near SDPA; processors that build a BlockMask name the backend that can read it.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import textwrap
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

SDPA, DISPATCH = "scaled_dot_product_attention", "dispatch_attention_fn"
_DEPTH = 3
"""Calls that are followed from a processor into helpers of its own library."""


def processor_of(module: nn.Module) -> Any:
    """The processor of an attention layer of diffusers, or None. A wrapper's is not its own."""
    own = module.__dict__.get("processor", module._modules.get("processor"))
    return own if callable(own) else None


def calls_attention(module: nn.Module) -> bool:
    """Whether a module runs a processor that may attend, or its class's own code names SDPA or the dispatcher."""
    cls: Any = type(module)
    return processor_of(module) is not None or _class_serves(cls)


def reaches_sdpa(module: nn.Module) -> bool:
    """Whether what a module runs today ends in torch's SDPA, or in the dispatcher without a backend by name."""
    processor = processor_of(module)
    if isinstance(processor, types.FunctionType):
        return _serves(processor, types.FunctionType, _DEPTH)
    cls: Any = type(module)
    kind: Any = type(processor)
    return _class_serves(cls) or (processor is not None and _processor_serves(kind))


@functools.cache
def dispatches(cls: type) -> bool:
    """Whether the code of a class names diffusers' dispatcher."""
    return any(DISPATCH in set(_names(f.__code__)) for f in _functions(cls))


@functools.cache
def _class_serves(cls: type) -> bool:
    return any(_serves(function, cls, 0) for function in _functions(cls) if function.__name__ != "__init__")


@functools.cache
def _processor_serves(cls: type) -> bool:
    entry = cls.forward if issubclass(cls, nn.Module) and "__call__" not in vars(cls) else cls.__call__
    entry = inspect.unwrap(entry)
    # What is written in another language cannot be read: the scope around it serves what reaches torch by name.
    return _serves(entry, cls, _DEPTH) if isinstance(entry, types.FunctionType) else True


def _functions(cls: type) -> Iterator[types.FunctionType]:
    for base in cls.__mro__:
        if base not in (nn.Module, object):
            yield from (m for m in vars(base).values() if isinstance(m, types.FunctionType))


def _serves(function: types.FunctionType, cls: type, depth: int) -> bool:
    """Whether a function calls SDPA by its name in torch, or the dispatcher without naming a backend."""
    names = set(_names(function.__code__))
    if SDPA in names and _asks_torch_for_it(function.__code__):
        return True
    if DISPATCH in names and not _names_its_backend(function):
        return True
    return depth > 0 and any(_serves(helper, cls, depth - 1) for helper in _helpers(function, cls, names))


def _helpers(function: types.FunctionType, cls: type, names: set[str]) -> Iterator[types.FunctionType]:
    library = function.__module__.partition(".")[0]
    for name in sorted(names - {DISPATCH}):
        for found in (function.__globals__.get(name), inspect.getattr_static(cls, name, None)):
            inner = inspect.unwrap(found) if isinstance(found, types.FunctionType) else found
            inner = getattr(inner, "__func__", inner)  # class and static methods
            if not isinstance(inner, types.FunctionType) or inner is function or name.startswith("__"):
                continue
            if inner.__module__.partition(".")[0] == library:
                yield inner


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _asks_torch_for_it(code: types.CodeType) -> bool:
    """Whether SDPA is read from torch when it is called. A name of the module's own was bound before us: torch's."""
    if any(i.argval == SDPA and i.opname in ("LOAD_ATTR", "LOAD_METHOD") for i in dis.get_instructions(code)):
        return True
    return any(
        _asks_torch_for_it(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)
    )


def _names_its_backend(function: types.FunctionType) -> bool:
    """Whether every call of the dispatcher in a function says itself which backend runs, and not torch's SDPA."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return False
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and _callee(n.func) == DISPATCH]
    return bool(calls) and all(_literal_backend(call) not in ("", "native") for call in calls)


def _callee(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _literal_backend(call: ast.Call) -> str:
    """The backend a call names in so many words, in lower case; '' where it is found out when it runs."""
    for keyword in call.keywords:
        if keyword.arg == "backend":
            value = keyword.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                return value.value.lower()
            if isinstance(value, ast.Attribute) and _callee(value.value) == "AttentionBackendName":
                return value.attr.lower()
    return ""
