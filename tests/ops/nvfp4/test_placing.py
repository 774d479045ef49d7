"""Where a weight goes: the implementations say in which layout they read it, in the order of selection."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import sgl_kernels
from sgl_kernels.backend import Implementation, Reason, Rejected, Requires
from sgl_kernels.core.device import parse_device
from sgl_kernels.core.dispatch import Dispatcher, activate, current
from sgl_kernels.core.registry import Registry, registry
from sgl_kernels.ops.nvfp4.formats import FORMATS
from sgl_kernels.ops.nvfp4.placing import for_device, layout_on, preferred_layout

ANYWHERE = Requires()


def weight():
    return sgl_kernels.nvfp4_quantize(torch.randn(64, 64))


def declared(backend, layout, rank, load=lambda config: lambda *args: None, requires=ANYWHERE):
    ask = None if layout is None else lambda facts, device: layout if facts.format == "nvfp4" else None
    return Implementation(
        op="nvfp4_linear", backend=backend, load=load, requires=requires, rank=rank, layout=ask
    )


def broken(config):
    raise ImportError("half of it is missing")


FLOOR = declared("floor", None, 0)
FIRST = declared("first", "swizzled_128x4", 90)
SECOND = declared("second", "swizzled_8x4", 50)


def dispatcher(*implementations):
    source = Registry()
    source.define(registry.op("nvfp4_linear"))
    source.add(implementations, "here")
    return Dispatcher(current().settings, source=source)


@pytest.mark.parametrize(
    ("implementations", "layout"),
    [
        ((FLOOR,), "linear"),
        ((FLOOR, SECOND, FIRST), "swizzled_128x4"),
        ((FLOOR, SECOND), "swizzled_8x4"),
        ((FLOOR, SECOND, declared("first", "swizzled_128x4", 90, broken)), "swizzled_8x4"),
        (
            (
                FLOOR,
                SECOND,
                declared("first", "trtllm_shuffled", 90, requires=Requires(archs=frozenset({"x"}))),
            ),
            "swizzled_8x4",
        ),
        (
            (FLOOR, declared("first", "trtllm_shuffled", 90, requires=Requires(packages=("no-such-thing",)))),
            "linear",
        ),
    ],
    ids=["nobody", "first", "second", "does not load", "another arch", "no package"],
)
def test_the_first_that_could_serve_says_the_layout(implementations, layout):
    held = weight()
    with activate(dispatcher(*implementations)):
        assert preferred_layout(held) == layout
        assert for_device(held).layout == layout
        assert for_device(held) is for_device(held) is (held.prepared[layout] if held.prepared else held)
        assert layout_on(parse_device("cpu"), FORMATS["mxfp4"], (64, 64)) == "linear"


@pytest.mark.parametrize(
    ("override", "layout"),
    [
        ({}, "swizzled_128x4"),
        ({"backend": "second"}, "swizzled_8x4"),
        ({"backend": "floor"}, "linear"),
        ({"backend": "second", "strict": True}, "swizzled_8x4"),
        ({"backend": "floor", "strict": True}, "linear"),
    ],
)
def test_the_layout_follows_what_the_user_prefers(override, layout):
    held = weight()
    with activate(dispatcher(FLOOR, SECOND, FIRST)):
        assert for_device(held).layout == "swizzled_128x4"
        with sgl_kernels.use(**override):
            assert for_device(held).layout == layout
        assert for_device(held).layout == "swizzled_128x4"


def test_a_backend_taken_away_takes_its_layout_along():
    held = weight()
    here = dispatcher(FLOOR, SECOND, FIRST)
    with activate(here):
        assert for_device(held).layout == "swizzled_128x4"
        here.registry.quarantine("nvfp4_linear", "first", Rejected(Reason.BUG, "wrong"))
        here.forget()
        assert for_device(held).layout == "swizzled_8x4"


@pytest.mark.parametrize(
    ("device", "format", "shape", "activation", "layout"),
    [
        ("cuda:sm100", "nvfp4", (256, 256), "nvfp4", "swizzled_128x4"),
        ("cuda:sm120", "nvfp4", (256, 256), "bf16", "swizzled_128x4"),
        ("cuda:sm100", "mxfp4", (256, 256), "mxfp4", "linear"),
        ("cuda:sm90", "nvfp4", (256, 256), "nvfp4", "linear"),
        ("rocm:gfx950", "nvfp4", (256, 256), "nvfp4", "linear"),
        ("xpu", "nvfp4", (256, 256), "bf16", "linear"),
        ("cpu", "mxfp4", (256, 256), "mxfp4", "linear"),
    ],
)
def test_the_layouts_of_the_tree(device, format, shape, activation, layout):
    assert layout_on(parse_device(device), FORMATS[format], shape, activation) == layout


@pytest.mark.parametrize(
    ("activation", "shape", "layout"),
    [
        ("mxfp4", (256, 512), "aiter_shuffled"),
        ("mxfp4", (128, 256), "aiter_shuffled"),
        ("mxfp4", (64, 256), "linear"),
        ("mxfp4", (128, 320), "linear"),
        ("bf16", (256, 512), "linear"),
    ],
)
def test_aiter_wants_its_tiles_where_they_divide_the_weight(activation, shape, layout):
    theirs = implementation("aiter")
    with activate(
        dispatcher(FLOOR, dataclasses.replace(theirs, requires=ANYWHERE, load=lambda config: print))
    ):
        assert layout_on(parse_device("rocm:gfx950"), FORMATS["mxfp4"], shape, activation) == layout


@pytest.mark.parametrize(
    ("wanted", "layout"),
    [
        (None, "swizzled_128x4"),
        ("flashinfer_trtllm", "trtllm_shuffled"),
        ("flashinfer_cudnn", "swizzled_128x4"),
    ],
)
def test_flashinfers_variable_decides_the_layout_where_flashinfer_is(wanted, layout):
    names = ("flashinfer_trtllm", "flashinfer_cutlass", "flashinfer_cudnn")
    here = dispatcher(
        FLOOR,
        implementation("torch_scaled_mm"),
        *(
            dataclasses.replace(implementation(n), requires=ANYWHERE, load=lambda config: print)
            for n in names
        ),
    )
    quantization = dataclasses.replace(here.settings.quantization, flashinfer_fp4_gemm_backend=wanted)
    with activate(here.derive(dataclasses.replace(here.settings, quantization=quantization))):
        assert layout_on(parse_device("cuda:sm100"), FORMATS["nvfp4"], (256, 256), "nvfp4") == layout


def implementation(backend):
    return next(i for i in registry.implementations("nvfp4_linear") if i.backend == backend)
