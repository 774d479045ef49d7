"""explain takes a call as the front door takes it, and decides as the call would."""

from __future__ import annotations

import inspect

import pytest
import torch

import sgl_kernels
from sgl_kernels.core.device import parse_device
from sgl_kernels.core.registry import registry
from sgl_kernels.ops.nvfp4.formats import NVFP4
from sgl_kernels.ops.nvfp4.placing import for_device

NOT_THE_OP_S = {"backend", "out"}  # who runs it and where the result goes, not what is computed


def quantised() -> sgl_kernels.ScaledTensor:
    return sgl_kernels.nvfp4_quantize(torch.randn(96, 64))


def test_a_quantised_weight_is_one_argument() -> None:
    x, w, bias = torch.randn(5, 64), quantised(), torch.randn(96)
    for found in (
        sgl_kernels.explain("nvfp4_linear", x, w, bias, activation="int8"),
        sgl_kernels.explain("nvfp4_linear", x, weight=w, bias=bias, activation="int8"),
    ):
        assert found.facts.layout == for_device(w).layout
        assert (found.facts.m, found.facts.n, found.facts.k) == (5, 96, 64)
        assert found.facts.activation == "int8" and found.chosen


def test_the_schema_s_own_arguments_still_do() -> None:
    w = quantised()
    found = sgl_kernels.explain("nvfp4_linear", torch.randn(5, 64), w.data, w.block_scale, w.global_scale)
    assert found.facts.layout == "linear"


def test_a_format_may_be_the_object_or_its_name() -> None:
    x = torch.randn(4, 32)
    by_object = sgl_kernels.explain("nvfp4_quantize", x, format=NVFP4, nonfinite="propagate")
    assert by_object.facts == sgl_kernels.explain("nvfp4_quantize", x, format="nvfp4").facts


def test_windows_are_the_attention_ops_only() -> None:
    q = torch.randn(1, 8, 2, 16)
    assert sgl_kernels.explain("attention", q, q, q, window_size=(3, 0)).facts.window == (3, 0)
    with pytest.raises(TypeError, match="unknown argument 'window_size'"):
        sgl_kernels.explain("rms_norm", q, window_size=(3, 0))


def test_a_fourth_positional_argument_is_refused_as_by_the_front_door() -> None:
    with pytest.raises(TypeError, match="by position"):
        sgl_kernels.explain("nvfp4_linear", torch.randn(5, 64), quantised(), None, "int8")


@pytest.mark.parametrize("name", sorted(registry.ops()))
def test_every_argument_of_the_front_door_is_understood(name: str) -> None:
    op = registry.op(name)
    schema = {a.name for a in op.arguments}
    for parameter in inspect.signature(getattr(sgl_kernels, name)).parameters.values():
        if parameter.name in schema | NOT_THE_OP_S or parameter.default is inspect.Parameter.empty:
            continue
        assert op.spelled is not None, parameter.name
        _, kwargs = op.spelled((), {parameter.name: parameter.default})
        assert set(kwargs) <= schema, parameter.name


@pytest.mark.parametrize(
    ("device", "layout"),
    [("cuda:sm100", "swizzled_128x4"), ("cuda:sm90", "linear"), ("xpu", "linear"), ("cpu", "cpu_packed")],
)
def test_a_workload_comes_to_a_device_in_its_own_layout(device: str, layout: str) -> None:
    op = registry.op("nvfp4_linear")
    case = next(c for c in op.cases() if c.name == "bf16.packed.tails")
    args = op.canonical(*case.make(torch.device("cpu"), torch.float32))
    placed = op.place(args, parse_device(device))
    assert placed[8] == layout
    torch.testing.assert_close(op.reference(*placed), op.reference(*args), rtol=0, atol=0)
    meta = op.place(op.canonical(*case.fake(torch.float32)), parse_device(device))
    op.check(*meta)
    assert [t.shape for t in meta[1:3]] == [t.shape for t in placed[1:3]]


def test_a_scaled_tensor_prints_in_a_line() -> None:
    assert "\n" not in repr(quantised()) and "nvfp4 (96, 64)" in repr(quantised())
