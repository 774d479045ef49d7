"""What an operation is: its schema, facts, reference and workloads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .device import Device

Run = Callable[..., Any]
"""A function that serves calls: a backend's, and every wrapper around it. Called with the arguments of the schema."""

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def _is_int(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool | Tensor)


# type in a schema -> (whether a value fits, in words); NumPy's scalars count as what they are
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bool": (
        lambda v: isinstance(v, bool) or type(v).__name__ in ("bool_", "bool", "SymBool"),
        "True or False",
    ),
    "int": (_is_int, "an int"),
    "float": (
        lambda v: isinstance(v, int | float) or (hasattr(v, "__float__") and not isinstance(v, Tensor | str)),
        "a number",
    ),
    "str": (lambda v: isinstance(v, str), "a string"),
}


class Facts(Protocol):
    """What selection may know about a call. Each op's Facts is a NamedTuple of hashables."""

    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def needs_grad(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input tensor as data. `dtype` None means the dtype the case is run at.

    `strides`: "contiguous"; "transposed" makes the tensor a view with dims `dims` swapped; "padded" makes it
    a slice of a wider buffer, so that rows are not adjacent.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None
    fill: str = "normal"  # normal | uniform | ones | zeros | bool | large | arange | values
    strides: str = "contiguous"  # contiguous | transposed | padded
    dims: tuple[int, int] = (1, 2)
    scale: float = 1.0
    values: tuple[Any, ...] = ()  # for fill="values"

    def make(self, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Tensor:
        """A fresh tensor on `device`; random fills draw from `generator` (a CPU generator)."""
        target = self.dtype or dtype
        shape = list(self.shape)
        if self.strides == "transposed":
            a, b = self.dims
            shape[a], shape[b] = shape[b], shape[a]
        elif self.strides == "padded":
            shape[-1] += 16
        base = self._fill(tuple(shape), target, generator).to(device)
        if self.strides == "transposed":
            return base.transpose(*self.dims)
        if self.strides == "padded":
            return base[..., 8 : 8 + self.shape[-1]]
        return base

    def _fill(self, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        if self.fill == "bool":
            return torch.rand(shape, generator=generator) < 0.6
        if self.fill == "values":
            return torch.tensor(self.values, dtype=dtype).reshape(shape)
        if self.fill in ("ones", "zeros"):
            return torch.full(shape, float(self.fill == "ones"), dtype=dtype)
        if self.fill == "uniform":
            return (torch.rand(shape, generator=generator) * self.scale).to(dtype)
        wide = torch.randn(shape, generator=generator) * self.scale
        if self.fill == "large":  # a mean that dwarfs the spread: what breaks one-pass variance
            wide = wide + 100.0 * self.scale
        return wide.to(dtype)


@dataclass(frozen=True, slots=True)
class Case:
    """One workload: inputs as data. Tests, benchmarks and the tuner all read these."""

    name: str  # "flux.double.s4608h24d128"
    args: tuple[Any, ...]  # TensorSpec or plain values, in schema order; missing trailing ones take defaults
    tags: frozenset[str] = frozenset({"test"})  # test | bench | tune | smoke | slow
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
    backends: frozenset[str] | None = None  # bench: restrict to these
    note: str = ""

    def make(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> tuple[Any, ...]:
        """Fresh arguments, in schema order."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(a.make(dtype, device, generator) if isinstance(a, TensorSpec) else a for a in self.args)

    def fake(self, dtype: torch.dtype) -> tuple[Any, ...]:
        """The same arguments as meta tensors: shapes and dtypes, no memory."""
        return tuple(
            torch.empty(a.shape, dtype=torch.bool if a.fill == "bool" else (a.dtype or dtype), device="meta")
            if isinstance(a, TensorSpec)
            else a
            for a in self.args
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """The work an op cannot avoid."""

    flops: int
    bytes: int  # compulsory traffic: each input once, output once


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a schema."""

    name: str
    default: Any
    has_default: bool
    is_tensor: bool
    kind: str = ""  # as torch prints the type: "Tensor", "Optional[float]", "bool"


@dataclass(frozen=True, eq=False)
class Op:
    """Names an operation and fixes its meaning. Knows nothing about who implements it.

    schema     "rms_norm(Tensor x, Tensor? weight=None, float eps=1e-6, ...) -> Tensor", with every default
    facts      schema arguments -> a NamedTuple of hashables; the first argument's device is asked separately
    reference  the definition in plain torch, at the precision of its inputs (float64 inputs: the oracle)
    fake       shapes and dtypes only
    check      full validation; raises ValueError or TypeError with a message that says what to do
    cases      () -> workloads
    cost       schema arguments -> Cost
    autocast   names of the tensor arguments that follow autocast's lower precision; () = the op ignores it
    strided    names of the tensor arguments whose strides are among the facts
    """

    name: str
    schema: str
    facts: Callable[..., Any]
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    check: Callable[..., None]
    cases: Callable[[], tuple[Case, ...]]
    cost: Callable[..., Cost]
    autocast: tuple[str, ...] = ()
    strided: tuple[str, ...] = ()
    family: str = ""
    doc: str = ""
    splits: Callable[[tuple[Any, ...]], Iterable[Any]] | None = (
        None  # schema arguments -> the ways in which DTensor may split the call; see core/sharding.py
    )
    shape_class: Callable[[Any], str] | None = (
        None  # facts -> the class of shapes a rule of the settings may name, one of core/names/ops.py's SHAPE_CLASSES
    )
    reads_values: bool = (
        False  # its definition branches on values, such as lengths, so no tracer can look inside
    )
    lossy_tolerance: float = 0.1  # relative L2 a LOSSY implementation may err by on a test case
    sampled: Callable[[Any, tuple[Any, ...], int], tuple[Tensor, Tensor, Tensor]] | None = (
        None  # (result, arguments, turn) -> some rows of the result, and the exact ones; see wrapping/lossy_guard.py
    )
    in_place: Callable[..., tuple[tuple[tuple[str, Tensor], ...], ...]] | None = (
        None  # schema arguments -> for each result the (argument, tensor) that out= may be, whole: every kernel
        # reads a row of it before it writes that row
    )
    spelled: Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]] | None = (
        None  # (args, kwargs) as the front door takes them -> as the schema does, where the two differ
    )
    placed: Callable[[tuple[Any, ...], Device], tuple[Any, ...]] | None = (
        None  # (schema arguments of a case, device) -> the same as the front door hands them over on that device
    )
    settled: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = (
        None  # schema arguments -> the same tuple, or one in the form every implementation takes
    )
    arguments: tuple[Argument, ...] = field(init=False)

    def __post_init__(self) -> None:
        parsed = torch._C.parse_schema(self.schema)
        if parsed.name != self.name:
            raise ValueError(f"op {self.name!r}: the schema names {parsed.name!r}")
        arguments = tuple(
            Argument(a.name, a.default_value, a.has_default_value(), "Tensor" in str(a.type), str(a.type))
            for a in parsed.arguments
        )
        object.__setattr__(self, "arguments", arguments)

    def canonical(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Arguments in schema order with defaults filled in; the front door's spelling is understood too.

        Raises TypeError as a Python call would.
        """
        if self.spelled is not None:
            args, kwargs = self.spelled(args, kwargs)
        names = [a.name for a in self.arguments]
        if len(args) > len(names):
            raise TypeError(
                f"{self.name}: takes {len(names)} arguments ({', '.join(names)}), got {len(args)}"
            )
        values = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name not in names:
                raise TypeError(f"{self.name}: unknown argument {name!r}; arguments are {', '.join(names)}")
            if name in values:
                raise TypeError(f"{self.name}: argument {name!r} is given twice")
            values[name] = value
        absent = [a.name for a in self.arguments if a.name not in values and not a.has_default]
        if absent:
            raise TypeError(f"{self.name}: missing argument {absent[0]!r}")
        return tuple(values.get(a.name, a.default) for a in self.arguments)

    def check_kinds(self, args: tuple[Any, ...]) -> None:
        """Every argument that is no tensor has the type of the schema, as under the compiler; else a TypeError."""
        for argument, value in zip(self.arguments, args, strict=True):
            if argument.is_tensor or (value is None and argument.kind.startswith("Optional")):
                continue
            wanted = argument.kind.removeprefix("Optional[").removesuffix("]")
            fits, words = _KINDS[wanted]
            if not fits(value):
                raise TypeError(
                    f"{self.name}: {argument.name} is {value!r} ({type(value).__name__}), expected {words}"
                )

    def place(self, args: tuple[Any, ...], device: Device) -> tuple[Any, ...]:
        """Arguments of a workload as they come on `device`: a weight lies in the layout its kernels read."""
        return args if self.placed is None else self.placed(args, device)

    def __repr__(self) -> str:
        return f"Op({self.name})"
