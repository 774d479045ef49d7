"""ONNX Runtime's CPU provider: one-node models, inputs and outputs bound to torch's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper
from torch import Tensor

from benchmarks.peers.peer import Attention, Broken, NotOffered, Peer, Variant, attempt, attention_of

TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.float16: TensorProto.FLOAT16,
    torch.bool: TensorProto.BOOL,
    torch.int32: TensorProto.INT32,
}
OPSETS = {"": 23, "com.microsoft": 1}
IR_VERSION = 11  # opset 23's


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a model: its operator, attributes and inputs in order; None leaves an optional input out."""

    operator: str
    inputs: Sequence[tuple[str, Tensor] | None]
    outputs: Sequence[tuple[str, Tensor]]
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ""


def _model(node: Node, cast: bool) -> bytes:
    """The node as a model; with `cast`, half types cross into float32 and back around it."""
    nodes, names, outs = [], [], []
    for one in node.inputs:
        name = "" if one is None else one[0]
        if cast and one is not None and one[1].dtype is torch.bfloat16:
            nodes.append(helper.make_node("Cast", [name], [f"{name}_wide"], to=TensorProto.FLOAT))
            name = f"{name}_wide"
        names.append(name)
    casts = []
    for name, tensor in node.outputs:
        wide = cast and tensor.dtype is torch.bfloat16
        outs.append(f"{name}_wide" if wide else name)
        if wide:
            casts.append(helper.make_node("Cast", [f"{name}_wide"], [name], to=TensorProto.BFLOAT16))
    nodes.append(helper.make_node(node.operator, names, outs, domain=node.domain, **node.attributes))
    graph = helper.make_graph(
        [*nodes, *casts],
        "one",
        [_value(name, tensor) for name, tensor in filter(None, node.inputs)],
        [_value(name, tensor) for name, tensor in node.outputs],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()


def _value(name: str, tensor: Tensor) -> Any:
    return helper.make_tensor_value_info(name, TYPES[tensor.dtype], list(tensor.shape))


class OnnxRuntime:
    """Sessions with a number of threads that sleep between calls."""

    def __init__(self, threads: int) -> None:
        self._options = ort.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._options.log_severity_level = 4  # what fails is in the table

    def versions(self) -> dict[str, str]:
        """The runtime, and the writer of its models."""
        return {"onnxruntime": ort.__version__, "onnx": onnx.__version__}

    def note(self) -> str:
        """How half types are served."""
        return (
            "where an operator has no bfloat16 or float16 kernel on the CPU, casts to float32 stand around it"
        )

    def variants(self, op: str, args: tuple[Any, ...]) -> list[Variant | Broken]:
        """Every operator that means the op."""
        build = {
            "attention": self._attention,
            "rms_norm": self._rms_norm,
            "layer_norm": self._layer_norm,
            "gelu_tanh": self._gelu,
        }.get(op)
        if build is None:
            raise NotOffered(f"ONNX Runtime has no operator for {op} on the CPU")
        return build(args)

    def _session(self, node: Node) -> tuple[Any, str]:
        """A session, and '' or what its label adds. float16 gets its casts from the runtime, bfloat16 from us."""
        make = ort.InferenceSession
        try:
            return make(_model(node, False), self._options, providers=["CPUExecutionProvider"]), ""
        except Exception:  # its errors have no common type; only bfloat16 has another way, all else is raised
            if node.outputs[0][1].dtype is not torch.bfloat16:
                raise
        wide = make(_model(node, True), self._options, providers=["CPUExecutionProvider"])
        return wide, ", float32 between casts"

    def _variant(self, label: str, node: Node) -> Variant | Broken:
        def build() -> Variant:
            session, more = self._session(node)
            binding = session.io_binding()
            for name, tensor in filter(None, node.inputs):
                shape = list(tensor.shape)
                binding.bind_input(name, "cpu", 0, TYPES[tensor.dtype], shape, tensor.data_ptr())
            for name, tensor in node.outputs:
                shape = list(tensor.shape)
                binding.bind_output(name, "cpu", 0, TYPES[tensor.dtype], shape, tensor.data_ptr())
            out = node.outputs[0][1]

            def run() -> None:
                session.run_with_iobinding(binding)

            return Variant(label + more, run, lambda: _back(out, node))

        return attempt(label, build)

    def _attention(self, args: tuple[Any, ...]) -> list[Variant | Broken]:
        call = attention_of(args)
        found = [self._variant("Attention", _attention_node(call))]
        if call.group == 1 and not (call.causal and call.mask is not None):
            found.append(self._variant("MultiHeadAttention", _multi_head_node(call)))
        decoding = call.q.shape[2] == 1 and not call.causal
        if call.group > 1 and call.mask is None and (call.causal or decoding):
            found.append(self._variant("GroupQueryAttention", _group_query_node(call, decoding)))
        return found

    def _rms_norm(self, args: tuple[Any, ...]) -> list[Variant | Broken]:
        x, weight, eps, offset = args
        if weight is None or offset:
            raise NotOffered("only RMS norm with a plain weight is compared")
        x = x.contiguous()
        rest = ([("x", x), ("w", weight)], [("y", torch.empty_like(x))], {"axis": -1, "epsilon": eps})
        return [
            self._variant(name, Node(name, *rest))
            for name in ("RMSNormalization", "SimplifiedLayerNormalization")
        ]

    def _layer_norm(self, args: tuple[Any, ...]) -> list[Variant | Broken]:
        x, weight, bias, eps = args
        if weight is None or bias is None:
            raise NotOffered("only layer norm with weight and bias is compared")
        inputs = [("x", x), ("w", weight), ("b", bias)]
        node = Node("LayerNormalization", inputs, [("y", torch.empty_like(x))], {"axis": -1, "epsilon": eps})
        return [self._variant("LayerNormalization", node)]

    def _gelu(self, args: tuple[Any, ...]) -> list[Variant | Broken]:
        (x,) = args
        one, other = torch.empty_like(x), torch.empty_like(x)
        return [
            self._variant("Gelu", Node("Gelu", [("x", x)], [("y", one)], {"approximate": "tanh"})),
            self._variant("FastGelu", Node("FastGelu", [("x", x)], [("y", other)], domain="com.microsoft")),
        ]


def _back(out: Tensor, node: Node) -> Tensor:
    """The output in our layout: (B, S, H, D) from (B, H, S, D), or from (B, S, H * D)."""
    if node.operator == "Attention":
        return out.transpose(1, 2)
    heads = node.attributes.get("num_heads")
    return out.unflatten(-1, (heads, -1)) if heads else out


def _flat(x: Tensor) -> Tensor:
    """(B, S, H * D), contiguous."""
    return x.transpose(1, 2).flatten(2).contiguous()


def _attention_node(call: Attention) -> Node:
    """The operator of opset 23, on (B, H, S, D)."""
    inputs: list[tuple[str, Tensor] | None] = [("q", call.q), ("k", call.k), ("v", call.v)]
    if call.mask is not None:
        inputs.append(("mask", call.mask.expand(*call.mask.shape[:2], call.q.shape[2], -1).contiguous()))
    out = torch.empty(*call.q.shape[:3], call.v.shape[-1], dtype=call.q.dtype)
    return Node("Attention", inputs, [("y", out)], {"is_causal": int(call.causal), "scale": call.scale})


def _multi_head_node(call: Attention) -> Node:
    """ONNX Runtime's own operator, on (B, S, H * D); a mask over keys alone has an input of its own."""
    q, k, v = _flat(call.q), _flat(call.k), _flat(call.v)
    padding = bias = None
    if call.mask is not None:
        if call.mask.dtype is torch.bool and call.mask.shape[1:3] == (1, 1):
            padding = ("padding", call.mask[:, 0, 0].expand(q.shape[0], -1).int().contiguous())
        else:
            bias = ("bias", call.additive())
    attributes = {"num_heads": call.q.shape[1], "scale": call.scale, "unidirectional": int(call.causal)}
    inputs = [("q", q), ("k", k), ("v", v), None, padding, bias]
    while inputs[-1] is None:
        inputs.pop()
    return Node("MultiHeadAttention", inputs, [("y", torch.empty_like(q))], attributes, "com.microsoft")  # type: ignore


def _group_query_node(call: Attention, decoding: bool) -> Node:
    """ONNX Runtime's operator of language models: causal, with a cache that it extends by the new keys.

    Decoding: all keys but the last are in the cache already, and past and present are the same memory, so that
    nothing is copied. Prefill: the cache is filled by the call, as it is in a model.
    """
    b, kv_heads, length, _ = call.k.shape
    q = _flat(call.q)
    fresh = slice(length - 1, length) if decoding else slice(None)
    k, v = _flat(call.k[:, :, fresh]), _flat(call.v[:, :, fresh])
    caches = [t.clone() for t in (call.k, call.v)]
    counts = torch.full((b,), length - 1, dtype=torch.int32)
    total = torch.tensor(length, dtype=torch.int32)
    inputs = [
        *(("q", q), ("k", k), ("v", v)),
        *(("past_k", caches[0]), ("past_v", caches[1])),
        *(("seqlens", counts), ("total", total)),
    ]
    outputs = [("y", torch.empty_like(q)), ("present_k", caches[0]), ("present_v", caches[1])]
    attributes = {"num_heads": call.q.shape[1], "kv_num_heads": kv_heads, "scale": call.scale}
    return Node("GroupQueryAttention", inputs, outputs, attributes, "com.microsoft")


def start(threads: int) -> Peer:
    """A runtime with `threads` threads."""
    return OnnxRuntime(threads)
