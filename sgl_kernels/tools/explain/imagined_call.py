"""Arguments for a call that nobody makes: meta tensors out of shapes, so that any machine can be asked about."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.core.op import DTYPES, Case, Op

MASKS = ("none", "bool", "float", "padding")
PARAMS = ("vector", "batch", "token", "frame")
FRAMES = 4
INTEGERS = {"int32": torch.int32, "uint8": torch.uint8, "int8": torch.int8, "bool": torch.bool}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What `explain` was asked, before it becomes arguments of an op."""

    shape: tuple[int, ...] | None = None  # of q, or of x
    kv_shape: tuple[int, ...] | None = None
    dtype: torch.dtype = torch.bfloat16
    mask: str = "none"
    lengths: tuple[int, ...] = ()  # of the sequences of a packed batch
    params: str = ""  # the shape adaLN parameters come in; "batch" if not said
    grad: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)  # schema argument -> value
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype | None]] = field(default_factory=dict)
    case: str = ""


def arguments(op: Op, question: Question) -> tuple[Any, ...]:
    """The op's arguments as meta tensors and plain values, in schema order.

    Raises ValueError for a name, shape or combination that the op does not have, naming the option to use.
    """
    names = [a.name for a in op.arguments]
    for option, given in (("--set", question.values), ("--tensor", question.tensors)):
        for name in given:
            if name not in names:
                raise ValueError(
                    f"{option} names {name!r}, which {op.name} does not have; its arguments: {', '.join(names)}"
                )
    if question.mask != "none" and "attn_mask" not in names:
        raise ValueError(f"--mask is {question.mask!r}, but {op.name} has no attn_mask; leave --mask out")
    _refuse_unused(op, question, names)
    if question.case or question.shape is None:
        found = _from_case(op, question)
    else:
        found = _from_shape(op, question, question.shape)
    for name, (shape, dtype) in question.tensors.items():
        found[name] = _empty(shape, dtype or question.dtype)
    found.update(question.values)
    missing = [a.name for a in op.arguments if not a.has_default and a.name not in found]
    if missing:
        raise ValueError(
            f"{op.name} needs {missing[0]!r}, which cannot be told from --shape; give --tensor "
            f"{missing[0]}=SHAPE:DTYPE, or --case with one of: {', '.join(c.name for c in op.cases()[:6])}"
        )
    if question.grad:
        for value in found.values():
            if isinstance(value, Tensor) and value.is_floating_point():
                value.requires_grad_()
    return op.canonical(**found)


def _refuse_unused(op: Op, question: Question, names: list[str]) -> None:
    """Every option that was given takes part: one that this op, or a case, has no use for is an error."""
    takers = {
        "--kv-shape": (question.kv_shape, "k" in names, "a k and a v"),
        "--lengths": (
            question.lengths,
            "cu_seqlens_q" in names,
            "packed sequences, which attention_varlen has",
        ),
        "--params": (question.params, _is_adaln(op) or "gate" in names, "adaLN parameters"),
    }
    for option, (given, has_use, what) in takers.items():
        if given and not has_use:
            raise ValueError(f"{option} is given, but {op.name} has no {what}; leave {option} out")
        if given and option != "--kv-shape" and question.shape is None:
            raise ValueError(f"{option} is given without --shape, expected both; add --shape")


def find_case(op: Op, name: str) -> Case:
    """A case of an op by name. Raises ValueError with the nearest match."""
    import difflib

    cases = {case.name: case for case in op.cases()}
    if name not in cases:
        near = difflib.get_close_matches(name, cases, 1, 0.4)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(
            f"--case: {op.name} has no case {name!r:.200}{hint} `sgl-kernels list cases --op {op.name}` names all"
        )
    return cases[name]


def default_case(op: Op) -> Case:
    """The case that stands for an op when no shape is given: its first benchmark, else its first."""
    cases = op.cases()
    return next((c for c in cases if "bench" in c.tags), cases[0])


def _from_case(op: Op, question: Question) -> dict[str, Any]:
    case = find_case(op, question.case) if question.case else default_case(op)
    if question.shape is not None or question.kv_shape is not None:
        raise ValueError(
            f"--case {case.name} already has shapes, expected no --shape or --kv-shape beside it; "
            "use --tensor NAME=SHAPE to exchange one tensor"
            if question.case
            else "--kv-shape is given without --shape, expected both; add --shape for q"
        )
    found = dict(zip((a.name for a in op.arguments), op.canonical(*case.fake(question.dtype)), strict=True))
    if question.mask != "none":
        found |= {"attn_mask": _mask(op, question, found["q"].shape, found["k"].shape)}
    return found


def _from_shape(op: Op, question: Question, shape: tuple[int, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for argument in op.arguments:
        rule = _RULES.get(argument.name)
        if rule is None or (argument.name in ("weight", "bias") and _is_adaln(op)):
            continue
        value = rule(op, question, shape)
        if value is not None:
            found[argument.name] = value
    return found


def _is_adaln(op: Op) -> bool:
    return any(a.name == "shift" for a in op.arguments)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    try:
        return torch.empty(shape, dtype=dtype, device="meta")
    except RuntimeError:  # torch counts bytes in 64 bits
        raise ValueError(
            f"--shape or --tensor asks for {'x'.join(map(str, shape))} elements, more than any tensor can have"
        ) from None


def _first(op: Op, q: Question, shape: tuple[int, ...]) -> Tensor:
    return _empty(shape, q.dtype)


def _key(op: Op, q: Question, shape: tuple[int, ...]) -> Tensor:
    return _empty(q.kv_shape or shape, q.dtype)


def _vector(op: Op, q: Question, shape: tuple[int, ...]) -> Tensor:
    channels = shape[1] if op.name == "group_norm" and len(shape) > 1 else shape[-1]
    return _empty((channels,), q.dtype)


def _modulation(op: Op, q: Question, shape: tuple[int, ...]) -> Tensor | float | None:
    if op.family == "attention":
        return None  # there `scale` is the factor of the softmax, given with --scale
    width = shape[-1]
    if q.params == "vector" or len(shape) < 2:
        return _empty((width,), q.dtype)
    if q.params == "token":
        return _empty(shape, q.dtype)
    if q.params == "frame":
        return _empty((shape[0], FRAMES, 1, width), q.dtype)
    return _empty((shape[0], width), q.dtype)


def _table(op: Op, q: Question, shape: tuple[int, ...]) -> Tensor | None:
    if len(shape) < 3:
        return None
    return _empty((shape[1], shape[-1] // 2), torch.float32)


def _mask(op: Op, q: Question, query: tuple[int, ...], key: tuple[int, ...]) -> Tensor | None:
    if q.mask == "none":
        return None
    if len(query) != 4 or len(key) != 4:
        raise ValueError(
            f"--shape is {','.join(map(str, query))}, expected four numbers: batch, seqlen, heads, head_dim"
        )
    if q.mask == "padding":
        return _empty((query[0], 1, 1, key[1]), torch.bool)
    full = (query[0], 1 if q.mask == "bool" else query[2], query[1], key[1])
    return _empty(full, torch.bool if q.mask == "bool" else q.dtype)


def _cu_seqlens(op: Op, q: Question, shape: tuple[int, ...]) -> Tensor:
    return _empty((max(1, len(q.lengths)) + 1,), torch.int32)


def _longest(op: Op, q: Question, shape: tuple[int, ...]) -> int:
    if q.lengths and sum(q.lengths) != shape[0]:
        raise ValueError(
            f"--lengths add up to {sum(q.lengths)}, but --shape has {shape[0]} tokens; they must be equal"
        )
    return max(q.lengths) if q.lengths else shape[0]


def _groups(op: Op, q: Question, shape: tuple[int, ...]) -> int:
    channels = shape[1] if len(shape) > 1 else shape[0]
    return next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0)


_RULES: dict[str, Callable[[Op, Question, tuple[int, ...]], Any]] = {
    "q": _first,
    "x": _first,
    "residual": _first,
    "k": _key,
    "v": _key,
    "weight": _vector,
    "bias": _vector,
    "q_weight": _vector,
    "k_weight": _vector,
    "scale": _modulation,
    "shift": _modulation,
    "gate": _modulation,
    "cos": _table,
    "sin": _table,
    "attn_mask": lambda op, q, shape: _mask(op, q, shape, q.kv_shape or shape),
    "cu_seqlens_q": _cu_seqlens,
    "cu_seqlens_k": _cu_seqlens,
    "max_seqlen_q": _longest,
    "max_seqlen_k": lambda op, q, shape: _longest(op, q, q.kv_shape or shape),
    "num_groups": _groups,
}
"""How each schema argument follows from --shape. An argument without a rule keeps its default."""


def parse_shape(option: str, text: str) -> tuple[int, ...]:
    """'1,4096,24,128' or '1x4096x24x128'. Raises ValueError naming the option."""
    parts = re.split(r"[,x]", text.strip().lower())
    if not all(re.fullmatch(r"\d{1,9}", part.strip()) for part in parts):
        raise ValueError(
            f"{option} is {text!r}, expected whole numbers with commas between them, such as 1,4096,24,128"
        )
    return tuple(int(part) for part in parts)


def parse_value(option: str, text: str) -> tuple[str, Any]:
    """'eps=1e-5' as a name and a value. Raises ValueError naming the option."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"{option} is {text!r}, expected NAME=VALUE, such as eps=1e-5 or norm=rms")
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    value = value.strip()
    if value.lower() in words:
        return name.strip(), words[value.lower()]
    if re.fullmatch(r"[+-]?\d+", value):
        return name.strip(), int(value)
    return name.strip(), float(value) if NUMBER.fullmatch(value) else value


def parse_tensor(option: str, text: str) -> tuple[str, tuple[tuple[int, ...], torch.dtype | None]]:
    """'cos=4096x64:float32' as a name, a shape and a dtype. Raises ValueError naming the option."""
    name, equals, rest = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(
            f"{option} is {text!r}, expected NAME=SHAPE or NAME=SHAPE:DTYPE, such as k=1x77x24x64"
        )
    shape, _, dtype = rest.partition(":")
    known: dict[str, torch.dtype] = {**DTYPES, **INTEGERS}
    if dtype and dtype not in known:
        raise ValueError(f"{option} names the dtype {dtype!r}, expected one of {', '.join(known)}")
    return name.strip(), (parse_shape(option, shape), known.get(dtype))
