"""OpenVINO's CPU plug-in: one-operation models, tensors that share torch's memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import openvino as ov
import torch
from openvino import opset13 as ops
from torch import Tensor

from benchmarks.peers.peer import Attention, Broken, NotOffered, Peer, Variant, attempt, attention_of

TYPES = {
    torch.float32: ov.Type.f32,
    torch.bfloat16: ov.Type.bf16,
    torch.float16: ov.Type.f16,
    torch.bool: ov.Type.boolean,
}
HINTS = {torch.float32: ("FP32", "f32"), torch.bfloat16: ("BF16", "bf16"), torch.float16: ("FP16", "f16")}
Graph = Callable[[Sequence[Any]], Any]
Back = Callable[[Tensor], Tensor]


def _shared(tensor: Tensor) -> ov.Tensor:
    """The same memory as an OpenVINO tensor; numpy has no bfloat16, so half types cross as 16-bit words."""
    words = tensor.view(torch.int16) if tensor.element_size() == 2 else tensor
    return ov.Tensor(words.numpy(), ov.Shape(list(tensor.shape)), TYPES[tensor.dtype])


def _constant(value: Tensor | float, like: Any) -> Any:
    """A constant of the model, in the element type of another node."""
    tensor = value if isinstance(value, Tensor) else torch.tensor(value)
    number = ops.constant(tensor.float().numpy())  # of numpy a copy is kept, of a tensor its address
    return ops.convert(number, like.get_element_type().get_type_name())


def _repeat(x: Any, group: int, shape: Sequence[int]) -> Any:
    """A head for each query head inside the graph, as exported language models spell it."""
    b, h, s, d = shape
    wide = ops.broadcast(ops.unsqueeze(x, 2), [b, h, group, s, d])
    return ops.reshape(wide, [b, h * group, s, d], False)


def _same(out: Tensor) -> Tensor:
    return out


class OpenVINO:
    """Models for one stream of a number of threads."""

    def __init__(self, threads: int) -> None:
        self._core = ov.Core()
        self._threads = threads
        self._able = set(self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))

    def versions(self) -> dict[str, str]:
        """The release."""
        return {"openvino": ov.__version__.partition("-")[0]}

    def note(self) -> str:
        """What half types are computed in here."""
        missing = [name for name in ("BF16", "FP16") if name not in self._able]
        return f"computes {' and '.join(missing)} in FP32 on this processor" if missing else ""

    def variants(self, op: str, args: tuple[Any, ...]) -> list[Variant | Broken]:
        """The op in the case's dtype; where half types have arithmetic, also float32 inputs with a hint."""
        build = {
            "attention": self._attention,
            "rms_norm": self._rms_norm,
            "layer_norm": self._layer_norm,
            "gelu_tanh": self._gelu,
        }.get(op)
        if build is None:
            raise NotOffered(f"OpenVINO has no operation for {op}")
        return build(args)

    def _both(
        self, label: str, inputs: Sequence[Tensor], out: Tensor, graph: Graph, back: Back = _same
    ) -> list[Variant | Broken]:
        name, hint = HINTS[out.dtype]
        precision = hint if name in self._able else "f32"
        found = [attempt(label, lambda: self._variant(label, inputs, out, graph, back, precision))]
        if precision != "f32":
            wide = [t.float() if t.is_floating_point() else t for t in inputs]
            hinted = f"{label}, float32 inputs with the hint {precision}"
            found.append(
                attempt(hinted, lambda: self._variant(hinted, wide, out.float(), graph, back, precision))
            )
        return found

    def _variant(
        self, label: str, inputs: Sequence[Tensor], out: Tensor, graph: Graph, back: Back, precision: str
    ) -> Variant:
        parameters = [ops.parameter(list(t.shape), TYPES[t.dtype]) for t in inputs]
        model = ov.Model([graph(parameters)], parameters)
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # the process is pinned
        }
        request = self._core.compile_model(model, "CPU", settings).create_infer_request()
        for index, tensor in enumerate(inputs):
            request.set_input_tensor(index, _shared(tensor))
        request.set_output_tensor(0, _shared(out))
        memory = (*inputs, out)  # the request holds addresses alone

        def run() -> None:
            request.infer()

        return Variant(label, run, lambda: back(memory[-1]))

    def _attention(self, args: tuple[Any, ...]) -> list[Variant | Broken]:
        call = attention_of(args)
        if not math.isclose(call.scale, call.q.shape[-1] ** -0.5):
            raise NotOffered("only the usual scale is compared")
        label = "ScaledDotProductAttention"
        if call.group == 1:
            return self._sdpa(label, call, call.k, call.v, 1)
        return [
            *self._sdpa(f"{label}, K and V repeated beforehand", call, *call.repeated(), 1),
            *self._sdpa(f"{label}, K and V repeated in the graph", call, call.k, call.v, call.group),
        ]

    def _sdpa(self, label: str, call: Attention, k: Tensor, v: Tensor, group: int) -> list[Variant | Broken]:
        inputs = [call.q, k, v, *([] if call.mask is None else [call.mask])]
        out = torch.empty(*call.q.shape[:3], v.shape[-1], dtype=call.q.dtype)

        def graph(p: Sequence[Any]) -> Any:
            keys, values = p[1], p[2]
            if group > 1:
                keys, values = _repeat(keys, group, k.shape), _repeat(values, group, v.shape)
            mask = p[3] if len(p) > 3 else None
            return ops.scaled_dot_product_attention(p[0], keys, values, mask, causal=call.causal)

        return self._both(label, inputs, out, graph, lambda t: t.transpose(1, 2))

    def _rms_norm(self, args: tuple[Any, ...]) -> list[Variant | Broken]:
        x, weight, eps, offset = args
        if weight is None or offset:
            raise NotOffered("only RMS norm with a plain weight is compared")

        def graph(p: Sequence[Any]) -> Any:  # the spelling that its RMS fusion knows
            mean = ops.reduce_mean(ops.power(p[0], _constant(2.0, p[0])), [-1], True)
            root = ops.sqrt(ops.add(mean, _constant(eps, p[0])))
            normed = ops.multiply(p[0], ops.divide(_constant(1.0, p[0]), root))
            return ops.multiply(normed, _constant(weight, p[0]))

        return self._both("RMS norm, spelled for its fusion", [x], torch.empty_like(x), graph)

    def _layer_norm(self, args: tuple[Any, ...]) -> list[Variant | Broken]:
        x, weight, bias, eps = args
        if weight is None or bias is None:
            raise NotOffered("only layer norm with weight and bias is compared")

        def graph(p: Sequence[Any]) -> Any:
            normed = ops.mvn(p[0], [-1], True, eps, "inside_sqrt")
            return ops.add(ops.multiply(normed, _constant(weight, p[0])), _constant(bias, p[0]))

        return self._both("MVN with weight and bias", [x], torch.empty_like(x), graph)

    def _gelu(self, args: tuple[Any, ...]) -> list[Variant | Broken]:
        (x,) = args
        return self._both("Gelu, tanh", [x], torch.empty_like(x), lambda p: ops.gelu(p[0], "tanh"))


def start(threads: int) -> Peer:
    """A plug-in with `threads` threads."""
    return OpenVINO(threads)
