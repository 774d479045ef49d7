"""Scaled 4-bit formats and the container that keeps data, scales, format and layout together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import InitVar, dataclass, field, replace

import torch
from torch import Tensor

from sgl_kernels.core.tensors import is_wrapped

E2M1_MAX = 6.0
E4M3_MAX = 448.0
INFINITY = float("inf")
PLAIN = (Tensor, torch.nn.Parameter)

LAYOUTS = ("linear", "swizzled_128x4", "swizzled_8x4", "trtllm_shuffled", "aiter_shuffled", "cpu_packed")


@dataclass(frozen=True, slots=True)
class ScaledFormat:
    """A format whose elements share one scale per block along K.

    Elements are e2m1, packed two to a byte with even k in the low nibble.
    """

    name: str
    block: int  # elements along K that share a scale
    scale_dtype: torch.dtype
    has_global: bool  # a second, fp32 scale for the whole tensor


NVFP4 = ScaledFormat("nvfp4", 16, torch.float8_e4m3fn, True)
MXFP4 = ScaledFormat("mxfp4", 32, torch.float8_e8m0fnu, False)
FORMATS = {f.name: f for f in (NVFP4, MXFP4)}


def parse_format(name: str | ScaledFormat) -> ScaledFormat:
    """The format called `name`; a ScaledFormat passes through."""
    if isinstance(name, ScaledFormat):
        return name
    if name not in FORMATS:
        raise ValueError(f"format is {name!r}; expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ScaledTensor:
    """A quantised tensor: x ~= e2m1(data) * block_scale * global_scale.

    data          uint8 (..., K/2), low nibble = even k; other layouts permute or pad it, see `layout`
    block_scale   (..., K/block) in the format's scale dtype; padded and permuted in swizzled layouts;
                  empty in "cpu_packed", where scales are interleaved with the data
    global_scale  fp32 scalar tensor in the *decode* direction (amax / 2688), None for MXFP4
    shape         the logical shape (..., K)
    layout        "linear" | "swizzled_128x4" | "swizzled_8x4" (scales only are permuted)
                  | "trtllm_shuffled" (rows of data and scales permuted, scales then swizzled)
                  | "aiter_shuffled" (MXFP4: tiles of 16 rows x 32 bytes, scales in tiles of 32 x 8)
                  | "cpu_packed" (one stream of 64-row panels, see layouts.py)

    A block scale is 0 or more, or NaN (not in "cpu_packed"): these decode to zeros and NaN whatever the codes. With
    its sign bit set it is no NVFP4, since tensor cores read these scales without a sign: ValueError. So is a global
    scale that is not positive and finite. Both are checked where the host can read them: in CPU memory here, on other
    devices when a weight is first used, which waits for the device once. `checked`: it has been done.
    """

    data: Tensor
    block_scale: Tensor
    global_scale: Tensor | None
    format: ScaledFormat
    shape: tuple[int, ...]
    layout: str = "linear"
    checked: InitVar[bool] = False
    prepared: dict[str, ScaledTensor] = field(default_factory=dict, init=False, repr=False)
    """Copies in other layouts that a backend asked for, made once; see api.nvfp4_linear."""
    homes: dict[str, tuple[int, ScaledTensor | None]] = field(default_factory=dict, init=False, repr=False)
    """activation -> the dispatcher's turn, and which of `prepared` serves it; None: itself. See placing.for_device."""
    examined: bool = field(default=False, init=False, repr=False)
    """Whether the scales have been looked at, or were said to be checked."""

    def __post_init__(self, checked: bool) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout is {self.layout!r}; expected one of {', '.join(LAYOUTS)}")
        if not self.shape or self.shape[-1] % self.format.block:
            raise ValueError(
                f"shape is {self.shape}; {self.format.name} needs a last dimension that is a multiple of "
                f"{self.format.block}; pad K with zeros before quantising"
            )
        if self.data.dtype != torch.uint8:
            raise TypeError(f"data is {self.data.dtype}; expected packed torch.uint8 (view it as uint8)")
        if self.block_scale.dtype != self.format.scale_dtype:
            raise TypeError(
                f"block_scale is {self.block_scale.dtype}; {self.format.name} needs {self.format.scale_dtype}"
            )
        if (self.global_scale is not None) != self.format.has_global:
            raise ValueError(
                f"global_scale is {'given' if self.global_scale is not None else 'missing'}; "
                f"{self.format.name} {'needs one' if self.format.has_global else 'has none'}"
            )
        if self.global_scale is not None and self.global_scale.numel() != 1:
            raise ValueError(f"global_scale has shape {tuple(self.global_scale.shape)}; expected one value")
        self._check_shapes()
        if checked:
            self._remember(True)
        else:
            self.check_scales()

    def examine(self, name: str) -> None:
        """check_scales, once for this object and on any device, before its first use as the argument `name`.

        Not while a graph is recorded, where nobody may wait for the device: the next use outside of it asks.
        """
        if not self.examined and not self.data.is_meta and not _capturing(self.device):
            self.check_scales(anywhere=True, of=f"{name}: ")

    def check_scales(self, anywhere: bool = False, of: str = "") -> None:
        """Raise ValueError for scales that are none. anywhere=True waits for an accelerator to say.

        of: who asks, as the message begins.
        """
        if torch.compiler.is_compiling():
            return
        packed = self.layout == "cpu_packed"  # whose kernels have no NaN among their scales
        held = (self.data[..., -64:] if packed else self.block_scale).view(self.format.scale_dtype)
        for name, fault in (
            ("block_scale", scales_fault(held, None, nan=not packed, anywhere=anywhere)),
            ("global_scale", scales_fault(None, self.global_scale, anywhere=anywhere)),
        ):
            if fault:
                raise ValueError(f"{of}{name} {fault}")
        looked_at = [t for t in (held, self.global_scale) if t is not None and t.numel()]
        self._remember(all(_readable(t, anywhere) for t in looked_at))

    def _remember(self, examined: bool) -> None:
        object.__setattr__(self, "examined", examined)

    def same_as(self, other: ScaledTensor) -> ScaledTensor:
        """Itself, which holds the value of `other` in another form: what was examined there need not be here."""
        self._remember(self.examined or (other.examined and not other.data.is_meta))
        return self

    def __repr__(self) -> str:
        shape = ", ".join(map(str, self.shape))
        return (
            f"ScaledTensor({self.format.name} ({shape}) in layout {self.layout!r}, {self.nbytes} bytes, "
            f"on {self.device})"
        )

    def _check_shapes(self) -> None:
        data, scale = self.storage_shapes(self.format, self.shape, self.layout)
        if tuple(self.data.shape) != data:
            raise ValueError(
                f"data has shape {tuple(self.data.shape)}; layout {self.layout!r} of {self.shape} needs {data}"
            )
        if tuple(self.block_scale.shape) != scale:
            raise ValueError(
                f"block_scale has shape {tuple(self.block_scale.shape)}; layout {self.layout!r} of "
                f"{self.shape} needs {scale}"
            )

    @staticmethod
    def storage_shapes(
        format: ScaledFormat, shape: tuple[int, ...], layout: str
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of (data, block_scale) that `layout` uses for a logical `shape`."""
        *lead, k = shape
        blocks = k // format.block
        if layout == "linear":
            return (*lead, k // 2), (*lead, blocks)
        if len(lead) != 1:
            raise ValueError(
                f"layout {layout!r} is defined for matrices; shape is {shape}, reshape to 2-D first"
            )
        rows = lead[0]
        if layout == "cpu_packed":
            return (ceil_to(rows, 64) // 64, blocks, 576), (0,)
        if layout == "trtllm_shuffled":
            padded = ceil_to(rows, 128)
            return (padded, k // 2), (padded, ceil_to(blocks, 4))
        if layout == "aiter_shuffled":
            if format.block != 32 or k % 64:
                raise ValueError(
                    f"layout 'aiter_shuffled' holds mxfp4 with K a multiple of 64; this is {format.name}, K {k}"
                )
            return (ceil_to(rows, 16), k // 2), (ceil_to(rows, 256), ceil_to(blocks, 8))
        tall = 128 if layout == "swizzled_128x4" else 8
        return (rows, k // 2), (ceil_to(rows, tall), ceil_to(blocks, 4))

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def rows(self) -> int:
        """Product of the leading dimensions."""
        n = 1
        for d in self.shape[:-1]:
            n *= d
        return n

    @property
    def nbytes(self) -> int:
        """Bytes held, scales and padding included."""
        parts = [self.data, self.block_scale]
        if self.global_scale is not None:
            parts.append(self.global_scale)
        return sum(t.numel() * t.element_size() for t in parts)

    def map(self, fn: Callable[[Tensor], Tensor]) -> ScaledTensor:
        """Apply `fn` (a move or a clone) to every tensor."""
        scale = None if self.global_scale is None else fn(self.global_scale)
        moved = replace(self, data=fn(self.data), block_scale=fn(self.block_scale), global_scale=scale)
        return moved.same_as(self)

    def to(self, device: torch.device | str) -> ScaledTensor:
        """The same value on another device."""
        return self.map(lambda t: t.to(device))


def scales_fault(
    block_scale: Tensor | None,
    global_scale: Tensor | None,
    *,
    nan: bool = False,
    zero: bool = False,
    anywhere: bool = False,
) -> str:
    """What is wrong with scales, "" if nothing is or the host cannot read them. `nan` and `zero` allow those."""
    if block_scale is not None and _readable(block_scale, anywhere):
        raw = block_scale.view(torch.uint8)
        signed = block_scale.dtype is torch.float8_e4m3fn
        top = (0x7E if signed else 0xFE) + nan
        if int(raw.max()) > top:
            if signed and (negative := int((raw > 0x7F).sum())):
                return f"has {negative} negative values of {raw.numel()}; block scales are 0 or more"
            return f"has NaN in {int((raw > top).sum())} of {raw.numel()} values"
    if global_scale is not None and _readable(global_scale, anywhere):
        value = global_scale.item()
        if not (0.0 < value < INFINITY or (zero and value == 0.0)):
            return f"is {value}, expected a positive finite number{' or 0' if zero else ''}"
    return ""


def _readable(t: Tensor, anywhere: bool) -> bool:
    if not (t.is_cpu or (anywhere and not t.is_meta)) or type(t) not in PLAIN or not t.numel():
        return False
    return not is_wrapped(t)


def _capturing(device: torch.device) -> bool:
    """Whether the device records a graph, during which nobody may wait for it."""
    asks = getattr(getattr(torch, device.type, None), "is_current_stream_capturing", None)
    return asks is not None and bool(asks())


def ceil_to(n: int, multiple: int) -> int:
    """`n` rounded up to a multiple."""
    return -(-n // multiple) * multiple
