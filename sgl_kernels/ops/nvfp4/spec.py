"""What the NVFP4 ops are: facts, validation, shapes and cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sgl_kernels.core.device import Device
from sgl_kernels.core.op import Cost, Op
from sgl_kernels.core.registry import registry
from sgl_kernels.ops import _validate as validate
from sgl_kernels.ops.nvfp4 import cases, reference
from sgl_kernels.ops.nvfp4.facts import DequantizeFacts, LinearFacts, QuantizeFacts
from sgl_kernels.ops.nvfp4.formats import FORMATS, LAYOUTS, ScaledFormat, ScaledTensor, parse_format
from sgl_kernels.ops.nvfp4.layouts import to_layout
from sgl_kernels.ops.nvfp4.placing import for_device, layout_on

ACTIVATIONS = ("bf16", "int8", "nvfp4", "mxfp4")
OUTPUTS = ("bfloat16", "float16", "float32", "float64")


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1] if x.shape[-1] else 0


def quantize_facts(x: Tensor, global_scale: Tensor | None, format: str, stochastic: bool) -> QuantizeFacts:
    """Facts of a validated nvfp4_quantize. It has no gradient, so none is ever needed."""
    return QuantizeFacts(x.dtype, _rows(x), x.shape[-1], format, stochastic, global_scale is not None, False)


def dequantize_facts(
    data: Tensor, block_scale: Tensor, global_scale: Tensor | None, format: str, dtype: str
) -> DequantizeFacts:
    """Facts of a validated nvfp4_dequantize."""
    return DequantizeFacts(getattr(torch, dtype), _rows(data), 2 * data.shape[-1], format, False)


def linear_facts(
    x: Tensor, weight: Tensor, weight_scale: Tensor, global_scale: Tensor | None, bias: Tensor | None,
    activation: str, input_scale: Tensor | None, format: str, layout: str, out_features: int,
) -> LinearFacts:  # fmt: skip
    """Facts of a validated nvfp4_linear."""
    return LinearFacts(
        x.dtype, _rows(x), out_features or weight.shape[0], x.shape[-1], activation, format, layout,
        None if bias is None else bias.dtype, input_scale is not None, validate.needs_grad(x, bias),
    )  # fmt: skip


def _check_scalar(op: str, name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{op}: {name} is {found}, expected one float32 in a tensor, for example torch.tensor(0.01)"
        )


def _check_blocks(op: str, name: str, k: int, format: str) -> None:
    validate.choice(op, "format", format, tuple(FORMATS))
    block = parse_format(format).block
    if k == 0 or k % block:
        raise ValueError(
            f"{op}: {name} has {k} columns, expected a positive multiple of {block} for {format}; "
            "pad the last dimension with zeros"
        )


def check_quantize(x: Tensor, global_scale: Tensor | None, format: str, stochastic: bool) -> None:
    """Validate an nvfp4_quantize."""
    op = "nvfp4_quantize"
    validate.tensor(op, "x", x)
    _check_blocks(op, "x", x.shape[-1] if x.ndim else 0, format)
    _check_scalar(op, "global_scale", global_scale)
    validate.same_device(op, x=x, global_scale=global_scale)
    if global_scale is not None and not parse_format(format).has_global:
        raise ValueError(f"{op}: global_scale is given, but {format} has none; leave it out")


def check_dequantize(
    data: Tensor, block_scale: Tensor, global_scale: Tensor | None, format: str, dtype: str
) -> None:
    """Validate an nvfp4_dequantize."""
    op = "nvfp4_dequantize"
    if not isinstance(data, Tensor) or data.dtype is not torch.uint8 or data.ndim == 0:
        raise ValueError(
            f"{op}: data is not a packed uint8 tensor (..., K/2); view float4_e2m1fn_x2 as uint8"
        )
    _check_blocks(op, "data", 2 * data.shape[-1], format)
    blocks = 2 * data.shape[-1] // parse_format(format).block
    if tuple(block_scale.shape) != (*data.shape[:-1], blocks):
        raise ValueError(
            f"{op}: block_scale has shape {list(block_scale.shape)}, expected {[*data.shape[:-1], blocks]} "
            "(linear layout; convert with to_layout)"
        )
    _check_scalar(op, "global_scale", global_scale)
    validate.same_device(op, data=data, block_scale=block_scale, global_scale=global_scale)
    validate.choice(op, "dtype", dtype, OUTPUTS)


def check_linear(
    x: Tensor, weight: Tensor, weight_scale: Tensor, global_scale: Tensor | None, bias: Tensor | None,
    activation: str, input_scale: Tensor | None, format: str, layout: str, out_features: int,
) -> None:  # fmt: skip
    """Validate an nvfp4_linear."""
    op = "nvfp4_linear"
    validate.tensor(op, "x", x)
    k = x.shape[-1] if x.ndim else 0
    _check_blocks(op, "x", k, format)
    validate.choice(op, "layout", layout, LAYOUTS)
    validate.choice(op, "activation", activation, ACTIVATIONS)
    if not isinstance(out_features, int) or out_features < 0:
        raise ValueError(f"{op}: out_features is {out_features!r}, expected an int, 0 for the rows of weight")
    if not out_features and layout in ("cpu_packed", "trtllm_shuffled"):
        raise ValueError(
            f"{op}: out_features is 0, but layout {layout!r} pads the rows: pass the number of rows"
        )
    n = out_features or weight.shape[0]
    data, scale = ScaledTensor.storage_shapes(parse_format(format), (n, k), layout)
    for name, value, want in (("weight", weight, data), ("weight_scale", weight_scale, scale)):
        if tuple(value.shape) != want:
            raise ValueError(
                f"{op}: {name} has shape {list(value.shape)}, expected {list(want)} for a weight of ({n}, {k}) in "
                f"layout {layout!r}"
            )
    _check_scalar(op, "global_scale", global_scale)
    _check_scalar(op, "input_scale", input_scale)
    validate.vector(op, "bias", bias, n, "the rows of weight")
    validate.same_device(
        op, x=x, weight=weight, weight_scale=weight_scale, global_scale=global_scale, bias=bias,
        input_scale=input_scale,
    )  # fmt: skip
    if (global_scale is not None) != parse_format(format).has_global:
        raise ValueError(
            f"{op}: global_scale must be given for nvfp4 and left out for mxfp4; format is {format!r}"
        )
    if input_scale is not None and activation != "nvfp4":
        raise ValueError(
            f"{op}: input_scale is given, but activation is {activation!r}; it calibrates activation='nvfp4' only"
        )


def _spelled_quantize(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A ScaledFormat goes by its name; what to do about NaN is decided behind the op."""
    if isinstance(kwargs.get("format"), ScaledFormat):
        kwargs["format"] = kwargs["format"].name
    kwargs.pop("nonfinite", None)
    return args, kwargs


def _spelled_linear(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A ScaledTensor is several arguments of the schema, in the layout its device's kernels read."""
    named = dict(zip(("x", "weight", "bias"), args, strict=False))
    weight = kwargs.get("weight", named.get("weight"))
    if not isinstance(weight, ScaledTensor):
        return args, kwargs
    if len(args) > 3:
        raise TypeError(f"nvfp4_linear: takes x, weight and bias by position, got {len(args)} arguments")
    w = for_device(weight)
    parts = {
        "weight": w.data,
        "weight_scale": w.block_scale,
        "global_scale": w.global_scale,
        "format": w.format.name,
        "layout": w.layout,
        "out_features": w.shape[0],
    }
    return (), {**named, **kwargs, **parts}


def _placed_linear(args: tuple[Any, ...], device: Device) -> tuple[Any, ...]:
    """Cases hold their weights as the CPU's kernels read them; other devices get theirs."""
    x, data, scale, global_scale, bias, activation, input_scale, name, layout, n = args
    fmt, shape = parse_format(name), (n or data.shape[0], x.shape[-1])
    if device.platform == "cpu":
        return args
    wanted = layout_on(device, fmt, shape, activation)
    if layout == wanted:
        return args
    if x.is_meta:
        sizes = ScaledTensor.storage_shapes(fmt, shape, wanted)
        data, scale = (t.new_empty(size) for t, size in zip((data, scale), sizes, strict=True))
    else:
        linear = to_layout(ScaledTensor(data, scale, global_scale, fmt, shape, layout), "linear")
        weight = to_layout(linear, wanted)
        data, scale = weight.data, weight.block_scale
    return x, data, scale, global_scale, bias, activation, input_scale, name, wanted, shape[0]


def _fake_quantize(
    x: Tensor, global_scale: Tensor | None, format: str, stochastic: bool
) -> tuple[Tensor, ...]:
    fmt, (*lead, k) = parse_format(format), x.shape
    return (
        x.new_empty((*lead, k // 2), dtype=torch.uint8),
        x.new_empty((*lead, k // fmt.block), dtype=fmt.scale_dtype),
        x.new_empty((), dtype=torch.float32),
    )


def _fake_dequantize(
    data: Tensor, block_scale: Tensor, global_scale: Tensor | None, format: str, dtype: str
) -> Tensor:
    return data.new_empty((*data.shape[:-1], 2 * data.shape[-1]), dtype=getattr(torch, dtype))


def _fake_linear(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], rest[-1] or weight.shape[0]))


def cost_quantize(x: Tensor, *rest: Any) -> Cost:
    """One pass over x; about ten operations an element."""
    return Cost(10 * x.numel(), x.numel() * x.element_size() + x.numel() * 9 // 16)


def cost_dequantize(data: Tensor, block_scale: Tensor, global_scale: Any, format: str, dtype: str) -> Cost:
    """Two products an element."""
    n = 2 * data.numel()
    return Cost(2 * n, data.numel() + block_scale.numel() + n * getattr(torch, dtype).itemsize)


def cost_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, *rest: Any) -> Cost:
    """2 M N K; the weight at its 4.5 bits, activations and output once."""
    n, k, m = rest[-1] or weight.shape[0], x.shape[-1], _rows(x)
    return Cost(2 * m * n * k, n * k * 9 // 16 + m * (k + n) * x.element_size())


NVFP4_QUANTIZE = registry.define(
    Op(
        name="nvfp4_quantize",
        schema="nvfp4_quantize(Tensor x, Tensor? global_scale=None, str format='nvfp4', bool stochastic=False) "
        "-> (Tensor, Tensor, Tensor)",
        facts=quantize_facts,
        reference=reference.nvfp4_quantize,
        fake=_fake_quantize,
        check=check_quantize,
        cases=cases.quantize,
        cost=cost_quantize,
        spelled=_spelled_quantize,
        reads_values=True,
        family="nvfp4",
        doc="x to packed 4-bit codes, block scales and a global scale",
    )
)
NVFP4_DEQUANTIZE = registry.define(
    Op(
        name="nvfp4_dequantize",
        schema="nvfp4_dequantize(Tensor data, Tensor block_scale, Tensor? global_scale=None, str format='nvfp4', "
        "str dtype='bfloat16') -> Tensor",
        facts=dequantize_facts,
        reference=reference.nvfp4_dequantize,
        fake=_fake_dequantize,
        check=check_dequantize,
        cases=cases.dequantize,
        cost=cost_dequantize,
        family="nvfp4",
        doc="the value of packed 4-bit data",
    )
)
NVFP4_LINEAR = registry.define(
    Op(
        name="nvfp4_linear",
        schema="nvfp4_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? global_scale=None, "
        "Tensor? bias=None, str activation='bf16', Tensor? input_scale=None, str format='nvfp4', "
        "str layout='linear', int out_features=0) -> Tensor",
        facts=linear_facts,
        reference=reference.nvfp4_linear,
        fake=_fake_linear,
        check=check_linear,
        cases=cases.linear,
        cost=cost_linear,
        spelled=_spelled_linear,
        placed=_placed_linear,
        autocast=("x",),
        family="nvfp4",
        doc="x times a 4-bit weight, transposed, plus bias",
    )
)
