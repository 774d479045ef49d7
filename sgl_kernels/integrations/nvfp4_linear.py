"""A linear layer whose weight is held in 4 bits."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from sgl_kernels.ops.nvfp4.api import nvfp4_linear, nvfp4_quantize
from sgl_kernels.ops.nvfp4.formats import NVFP4, ScaledFormat, ScaledTensor, parse_format, scales_fault
from sgl_kernels.ops.nvfp4.layouts import to_layout
from sgl_kernels.ops.nvfp4.placing import preferred_layout
from sgl_kernels.ops.nvfp4.spec import ACTIVATIONS

RANKS = {
    (2, 2): "linear",
    (3, 1): "cpu_packed",
    (2, 3): "swizzled_128x4",
    (2, 4): "swizzled_8x4",
    (3, 3): "trtllm_shuffled",
    (3, 4): "aiter_shuffled",
}
"""Ranks of the buffers `weight` and `weight_scale` -> layout. The two buffers say themselves what they hold, so that a
copy, a pickle, a move, or an offloading hook that puts its own tensors in their place, can never contradict a note
beside them. Leading dimensions of 1 make up the rank."""
_RANKS_OF = {layout: ranks for ranks, layout in RANKS.items()}
SCALARS = ("weight_scale_2", "input_scale")


class _Seen:
    """The block scales on a device that were looked at, by identity. A copy or a pickle has seen none."""

    def __init__(self) -> None:
        self._scales: weakref.ref[Tensor] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Seen, ()

    def has(self, scales: Tensor) -> bool:
        """Whether it was these."""
        return self._scales is not None and self._scales() is scales

    def add(self, scales: Tensor | None) -> None:
        """It was these; None: forget."""
        self._scales = None if scales is None else weakref.ref(scales)


class NVFP4Linear(nn.Module):
    """nn.Linear with an NVFP4 or MXFP4 weight, named in a state dict as ModelOpt names it.

        weight           uint8 (N, K/2), low nibble = even k
        weight_scale     e4m3 (N, K/16)
        weight_scale_2   fp32 scalar, decode direction (not for MXFP4)
        input_scale      fp32 scalar, decode direction: the calibrated scale of activation="nvfp4"; 0 = not calibrated
        pre_quant_scale  fp32 (K,) or absent: factors of x, of AWQ's checkpoints
        bias             (N,) or absent

    activation: "bf16" (x as it is), "int8", "nvfp4" or "mxfp4", see sgl_kernels.nvfp4_linear.

    On a CPU the first forward repacks the weight: it is held once, in the layout the C++ kernel reads. The exchange is
    one assignment, so threads that share the layer see the one or the other. `weight`, `weight_scale` and state_dict()
    always give the linear layout above; reading one of the two attributes puts the layer back into it.
    Scales are held to the rule of ScaledTensor: load_state_dict refuses others where the host can read them, and on a
    device the first forward does.
    """

    weight_scale_2: Tensor | None
    input_scale: Tensor | None
    pre_quant_scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        format: str | ScaledFormat = NVFP4,
        activation: str = "bf16",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.format = parse_format(format)
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"NVFP4Linear: activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}"
            )
        if in_features % self.format.block:
            raise ValueError(
                f"NVFP4Linear: in_features is {in_features}, expected a multiple of {self.format.block}; leave this "
                "layer in its own precision"
            )
        self._seen = _Seen()
        self.in_features, self.out_features, self.activation = in_features, out_features, activation
        data, scale = ScaledTensor.storage_shapes(self.format, (out_features, in_features), "linear")
        with torch.inference_mode(False):
            self.register_buffer("weight", torch.zeros(data, dtype=torch.uint8, device=device))
            raw = torch.zeros(scale, dtype=torch.uint8, device=device)
            self.register_buffer("weight_scale", raw.view(self.format.scale_dtype))
            one = torch.ones((), dtype=torch.float32, device=device) if self.format.has_global else None
            self.register_buffer("weight_scale_2", one)
            self.register_buffer("input_scale", None if one is None else torch.zeros_like(one))
            self.register_buffer("pre_quant_scale", None)
            self._calibrated = False
            self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, format: str | ScaledFormat = NVFP4, activation: str = "bf16"
    ) -> NVFP4Linear:
        """Quantise an nn.Linear. The bias is shared, the weight is not."""
        with torch.inference_mode(False), torch.no_grad():
            weight = linear.weight.detach()
            layer = cls(
                weight.shape[1], weight.shape[0], linear.bias is not None, format=format, activation=activation,
                device=weight.device, dtype=weight.dtype,
            )  # fmt: skip
            layer.set_weight(nvfp4_quantize(weight, format=layer.format))
        layer.bias = linear.bias
        layer.train(linear.training)
        return layer

    @property
    def weight(self) -> Tensor:
        """The packed values in linear layout, uint8 (N, K/2)."""
        return self._linear_weight().data

    @property
    def weight_scale(self) -> Tensor:
        """The block scales in linear layout, (N, K/16)."""
        return self._linear_weight().block_scale

    @property
    def layout(self) -> str:
        """The layout the weight is held in now."""
        return _layout(self._buffers)

    @property
    def is_calibrated(self) -> bool:
        """Whether activations have a fixed global scale."""
        return self._calibrated

    def set_weight(self, value: ScaledTensor) -> None:
        """Hold another quantised weight of the same format and shape, in any layout."""
        if value.format != self.format or tuple(value.shape) != (self.out_features, self.in_features):
            raise ValueError(
                f"NVFP4Linear: weight is {value.format.name} {tuple(value.shape)}, expected {self.format.name} "
                f"({self.out_features}, {self.in_features})"
            )
        value = value.map(_trainable)
        ranks = _RANKS_OF[value.layout]
        held = {"weight": _ranked(value.data, ranks[0]), "weight_scale": _ranked(value.block_scale, ranks[1])}
        if value.global_scale is not None:
            held["weight_scale_2"] = value.global_scale.reshape(())
        self.__dict__["_buffers"] = {**self._buffers, **held}  # one store: nobody sees half of it
        self._seen.add(held["weight_scale"] if value.examined else None)

    def quantised_weight(self) -> ScaledTensor:
        """The weight as it is held now."""
        return self._scaled(self._buffers)

    def _scaled(self, held: dict[str, Tensor | None]) -> ScaledTensor:
        data, scale, layout = held["weight"], held["weight_scale"], _layout(held)
        assert data is not None and scale is not None
        shape = (self.out_features, self.in_features)
        if layout not in ("linear", "cpu_packed"):  # ranks made up
            sizes = ScaledTensor.storage_shapes(self.format, shape, layout)
            data, scale = data.reshape(sizes[0]), scale.reshape(sizes[1])
        known = torch.compiler.is_compiling() or self._is_examined(held)
        return ScaledTensor(data, scale, held["weight_scale_2"], self.format, shape, layout, checked=known)

    def _is_examined(self, held: dict[str, Tensor | None]) -> bool:
        """In CPU memory whoever set the buffers has looked at them; on a device the first use does."""
        scale = held["weight_scale"]
        return scale is None or scale.is_cpu or self._seen.has(scale)

    def _note(self, held: dict[str, Tensor | None], weight: ScaledTensor) -> None:
        if not torch.compiler.is_compiling() and weight.examined and not self._is_examined(held):
            self._seen.add(held["weight_scale"])

    def calibrate(self, input_scale: float | Tensor | None) -> None:
        """Fix the global scale of activations (decode direction, amax / 2688); None measures it in every call."""
        if self.input_scale is None:
            raise ValueError(f"NVFP4Linear: {self.format.name} activations have no global scale")
        value = 0.0 if input_scale is None else float(input_scale)
        if not 0.0 <= value < float("inf"):
            raise ValueError(
                f"NVFP4Linear: input_scale is {value}, expected a finite number, 0 or None for dynamic"
            )
        with torch.inference_mode(False):
            self.input_scale = torch.full_like(self.input_scale, value)
        self._calibrated = value > 0

    def scale_inputs(self, factors: Tensor | None) -> None:
        """Multiply x by `factors` (K,) before anything else, as AWQ's checkpoints want; None takes them away."""
        if factors is not None and (
            tuple(factors.shape) != (self.in_features,) or not factors.is_floating_point()
        ):
            raise ValueError(
                f"NVFP4Linear: factors is {factors.dtype} {list(factors.shape)}, expected floats [{self.in_features}]"
            )
        with torch.inference_mode(False):
            self.pre_quant_scale = None if factors is None else _trainable(factors.detach().to(torch.float32))

    def prepare(self) -> None:
        """Repack the weight for the kernels of its device. forward does it when first called."""
        buffers = self._buffers
        held = self._scaled(buffers)
        held.examine("NVFP4Linear: weight")
        self._note(buffers, held)
        layout = preferred_layout(held, self.activation)
        if layout != held.layout:
            self._convert(held, layout)

    def _convert(self, held: ScaledTensor, layout: str) -> ScaledTensor:
        with torch.inference_mode(False), torch.no_grad():
            found = to_layout(held, layout)
            self.set_weight(found)
        return found

    def _linear_weight(self) -> ScaledTensor:
        """For whoever reads and replaces the two buffers one by one: accelerate's hooks, for example."""
        if "weight_scale" not in self._buffers:
            raise AttributeError("weight")  # asked by register_buffer
        held = self.quantised_weight()
        return held if held.layout == "linear" else self._convert(held, "linear")

    def forward(self, x: Tensor) -> Tensor:
        # a layer whose tensors come and go with each call is packed for the call, inside nvfp4_linear
        hook = self.__dict__.get("_hf_hook")
        offloaded = getattr(hook, "offload", False) and getattr(hook, "offload_buffers", False)
        if not offloaded and not torch.compiler.is_compiling() and self.layout == "linear":
            self.prepare()
        calibrated = self.input_scale if self._calibrated and self.activation == "nvfp4" else None
        if self.pre_quant_scale is not None:
            x = (x * self.pre_quant_scale).to(x.dtype)
        held = self._buffers
        weight = self._scaled(held)
        out = nvfp4_linear(x, weight, self.bias, activation=self.activation, input_scale=calibrated)
        if not x.is_cpu:
            self._note(held, weight)
        return out

    def _apply(self, fn: Any, recurse: bool = True) -> NVFP4Linear:
        """Moves keep bytes and scales as they are: .half() on a model must not convert them."""
        with torch.inference_mode(False), torch.no_grad():
            held = to_layout(self.quantised_weight(), "linear")
            kept = {**self._buffers, "weight": held.data, "weight_scale": held.block_scale}
            # seen as integers, which follow a move and ignore a change of dtype
            moved = {name: _as_integers(t, fn) for name, t in kept.items()}
        before = self.__dict__["_buffers"]
        self.__dict__["_buffers"] = {}
        try:
            super()._apply(fn, recurse)
        except BaseException:
            self.__dict__["_buffers"] = before
            raise
        self.__dict__["_buffers"] = moved
        self._seen.add(moved["weight_scale"] if held.examined else None)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        with torch.inference_mode(False), torch.no_grad():
            linear = to_layout(self.quantised_weight(), "linear")
        destination[prefix + "weight"] = linear.data
        destination[prefix + "weight_scale"] = linear.block_scale

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, missing_keys: Any,
        unexpected_keys: Any, error_msgs: list[str],
    ) -> None:  # fmt: skip
        faults = [self._fault(name, state_dict.get(prefix + name)) for name in ("weight_scale", *SCALARS)]
        if any(faults):
            error_msgs.extend(f"{prefix}{fault}" for fault in faults if fault)
            return
        if self.layout != "linear":
            self._convert(self.quantised_weight(), "linear")
        factors = state_dict.get(prefix + "pre_quant_scale")
        if (factors is None) != (self.pre_quant_scale is None):  # the checkpoint decides, as for input_scale
            device = self._buffers["weight"].device  # type: ignore[union-attr]
            self.pre_quant_scale = None if factors is None else torch.ones(self.in_features, device=device)
        self._seen.add(None)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if self.input_scale is not None and self.input_scale.device.type != "meta":
            self._calibrated = bool(self.input_scale > 0)

    def _fault(self, name: str, value: Any) -> str:
        if not isinstance(value, Tensor):
            return ""
        if name == "weight_scale":
            if not value.is_floating_point():  # bytes would be copied as numbers
                return f"{name} is {value.dtype}, expected {self.format.scale_dtype}; view it so"
            found = scales_fault(value.to(self.format.scale_dtype), None)
        else:
            zero = name == "input_scale"  # zero: not calibrated
            found = scales_fault(None, value, zero=zero) if value.numel() == 1 else ""
        return f"{name} {found}" if found else ""

    def __getstate__(self) -> dict[str, Any]:
        """Scales go as bytes: Python's pickle cannot carry torch's float8 tensors."""
        held = self._buffers
        assert held["weight_scale"] is not None
        return {**self.__dict__, "_buffers": {**held, "weight_scale": held["weight_scale"].view(torch.uint8)}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        held = state["_buffers"]
        scale = held["weight_scale"].view(state["format"].scale_dtype)
        super().__setstate__({**state, "_buffers": {**held, "weight_scale": scale}})

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"format={self.format.name}, activation={self.activation}"
        )


def _layout(held: dict[str, Tensor | None]) -> str:
    data, scale = held["weight"], held["weight_scale"]
    assert data is not None and scale is not None
    return RANKS[data.ndim, scale.ndim]


def _ranked(t: Tensor, rank: int) -> Tensor:
    return t.reshape((1,) * (rank - t.ndim) + tuple(t.shape))


def _trainable(t: Tensor) -> Tensor:
    """Not an inference tensor: those cannot enter a later backward."""
    if not t.is_inference():
        return t
    with torch.inference_mode(False):
        return t.clone()


def _as_integers(t: Tensor | None, fn: Any) -> Tensor | None:
    if t is None:
        return None
    whole = torch.uint8 if t.element_size() == 1 else torch.int32
    moved: Tensor = fn(t.view(whole))
    return moved.view(t.dtype)
