"""A linear layer whose weight is held in 4 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sgl_kernels.ops.nvfp4.api import nvfp4_linear, nvfp4_quantize, preferred_layout
from sgl_kernels.ops.nvfp4.formats import NVFP4, ScaledFormat, ScaledTensor, parse_format
from sgl_kernels.ops.nvfp4.layouts import to_layout
from sgl_kernels.ops.nvfp4.spec import ACTIVATIONS


class NVFP4Linear(nn.Module):
    """nn.Linear with an NVFP4 or MXFP4 weight, named in a state dict as ModelOpt names it.

        weight          uint8 (N, K/2), low nibble = even k
        weight_scale    e4m3 (N, K/16)
        weight_scale_2  fp32 scalar, decode direction (not for MXFP4)
        input_scale     fp32 scalar, decode direction: the calibrated scale of activation="nvfp4"; 0 = not calibrated
        bias            (N,) or absent

    activation: "bf16" (x as it is), "int8", "nvfp4" or "mxfp4", see sgl_kernels.nvfp4_linear.

    On a CPU the first forward repacks the weight in place: it is held once, in the layout the C++ kernel
    reads. state_dict() always gives the names and the linear layout above.
    """

    weight: Tensor
    weight_scale: Tensor
    weight_scale_2: Tensor | None
    input_scale: Tensor | None
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
        self.in_features, self.out_features, self.activation = in_features, out_features, activation
        self.layout = "linear"
        data, scale = ScaledTensor.storage_shapes(self.format, (out_features, in_features), "linear")
        self.register_buffer("weight", torch.zeros(data, dtype=torch.uint8, device=device))
        raw = torch.zeros(scale, dtype=torch.uint8, device=device)
        self.register_buffer("weight_scale", raw.view(self.format.scale_dtype))
        has_global = self.format.has_global
        one = torch.ones((), dtype=torch.float32, device=device)
        self.register_buffer("weight_scale_2", one if has_global else None)
        self.register_buffer("input_scale", torch.zeros_like(one) if has_global else None)
        self._calibrated = False
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, format: str | ScaledFormat = NVFP4, activation: str = "bf16"
    ) -> NVFP4Linear:
        """Quantise an nn.Linear. The bias is shared, the weight is not."""
        weight = linear.weight.detach()
        layer = cls(
            weight.shape[1], weight.shape[0], linear.bias is not None, format=format, activation=activation,
            device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
        layer.set_weight(nvfp4_quantize(weight, format=layer.format))
        layer.bias = linear.bias
        layer.train(linear.training)
        return layer

    def set_weight(self, value: ScaledTensor) -> None:
        """Hold another quantised weight of the same format and shape, in any layout."""
        if value.format != self.format or tuple(value.shape) != (self.out_features, self.in_features):
            raise ValueError(
                f"NVFP4Linear: weight is {value.format.name} {tuple(value.shape)}, expected {self.format.name} "
                f"({self.out_features}, {self.in_features})"
            )
        self.weight, self.weight_scale, self.layout = value.data, value.block_scale, value.layout
        if value.global_scale is not None:
            self.weight_scale_2 = value.global_scale.reshape(())

    def quantised_weight(self) -> ScaledTensor:
        """The weight as it is held now."""
        return ScaledTensor(
            self.weight, self.weight_scale, self.weight_scale_2, self.format, (self.out_features, self.in_features),
            self.layout,
        )  # fmt: skip

    def calibrate(self, input_scale: float | Tensor | None) -> None:
        """Fix the global scale of activations (decode direction, amax / 2688); None measures it in every call."""
        if self.input_scale is None:
            raise ValueError(f"NVFP4Linear: {self.format.name} activations have no global scale")
        value = 0.0 if input_scale is None else float(input_scale)
        if not 0.0 <= value < float("inf"):
            raise ValueError(
                f"NVFP4Linear: input_scale is {value}, expected a finite number, 0 or None for dynamic"
            )
        self.input_scale = torch.full_like(self.input_scale, value)
        self._calibrated = value > 0

    @property
    def is_calibrated(self) -> bool:
        """Whether activations have a fixed global scale."""
        return self._calibrated

    def prepare(self) -> None:
        """Repack the weight, in place, for the kernels of its device. forward does it when first called."""
        held = self.quantised_weight()
        layout = preferred_layout(held, self.activation)
        if layout != held.layout:
            self.set_weight(to_layout(held, layout))

    def forward(self, x: Tensor) -> Tensor:
        if self.layout == "linear" and not torch.compiler.is_compiling():
            self.prepare()
        calibrated = self.input_scale if self._calibrated and self.activation == "nvfp4" else None
        return nvfp4_linear(
            x, self.quantised_weight(), self.bias, activation=self.activation, input_scale=calibrated
        )

    def _apply(self, fn: Any, recurse: bool = True) -> NVFP4Linear:
        """Moves keep bytes and scales as they are: .half() on a model must not convert them."""
        held = to_layout(self.quantised_weight(), "linear")
        scales = (self.weight_scale_2, self.input_scale)
        super()._apply(fn, recurse)
        device = self.weight.device  # uint8 follows a move and ignores a change of dtype
        self.set_weight(held.to(device))
        for name, value in zip(("weight_scale_2", "input_scale"), scales, strict=True):
            setattr(self, name, None if value is None else value.to(device))
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        linear = to_layout(self.quantised_weight(), "linear")
        destination[prefix + "weight"] = linear.data
        destination[prefix + "weight_scale"] = linear.block_scale

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.layout != "linear":
            self.set_weight(to_layout(self.quantised_weight(), "linear"))
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.input_scale is not None and self.input_scale.device.type != "meta":
            self._calibrated = bool(self.input_scale > 0)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"format={self.format.name}, activation={self.activation}"
        )
