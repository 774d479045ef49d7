"""NVFP4Linear and quantize_model: state dicts, moves, reports, and models left as they were on an error."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from sgl_kernels.integrations.nvfp4_linear import NVFP4Linear
from sgl_kernels.integrations.quantize import quantize_model
from sgl_kernels.ops.nvfp4.api import nvfp4_dequantize, nvfp4_linear, nvfp4_quantize
from sgl_kernels.ops.nvfp4.placing import preferred_layout


def dense(layer: NVFP4Linear) -> torch.Tensor:
    return nvfp4_dequantize(layer.quantised_weight(), torch.float32)


@pytest.mark.parametrize("activation", ["bf16", "int8", "nvfp4"])
def test_forward_is_the_op(activation):
    linear = nn.Linear(96, 70)
    layer = NVFP4Linear.from_linear(linear, activation=activation)
    x = torch.randn(2, 5, 96)
    want = nvfp4_linear(x, nvfp4_quantize(linear.weight), linear.bias, activation=activation)
    with torch.no_grad():
        assert torch.allclose(layer(x), want, rtol=1e-5, atol=1e-5)


def test_state_dict_has_modelopts_names_before_and_after_the_first_forward():
    layer = NVFP4Linear.from_linear(nn.Linear(64, 40))
    before = layer.state_dict()
    layer(torch.randn(1, 64))
    after = layer.state_dict()
    assert set(after) == {"weight", "weight_scale", "weight_scale_2", "input_scale", "bias"}
    assert after["weight"].shape == (40, 32) and after["weight_scale"].shape == (40, 4)
    for name, value in before.items():
        assert torch.equal(value.reshape(-1).view(torch.uint8), after[name].reshape(-1).view(torch.uint8))


def test_state_dict_round_trip_restores_every_bit():
    a = NVFP4Linear.from_linear(nn.Linear(64, 40), activation="nvfp4")
    a.calibrate(0.01)
    b = NVFP4Linear(64, 40, activation="nvfp4")
    x = torch.randn(3, 64)
    b(x)  # packed before it is loaded
    buffer = io.BytesIO()
    torch.save(a.state_dict(), buffer)
    buffer.seek(0)
    b.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(a(x), b(x))
    assert b.input_scale == a.input_scale


def test_wrong_shapes_do_not_load():
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        NVFP4Linear(64, 40).load_state_dict(NVFP4Linear(64, 48).state_dict())


def test_copies_and_saved_modules_are_independent():
    a = NVFP4Linear.from_linear(nn.Linear(64, 40))
    x = torch.randn(2, 64)
    a(x)
    buffer = io.BytesIO()
    torch.save(a, buffer)
    buffer.seek(0)
    for b in (copy.deepcopy(a), torch.load(buffer, weights_only=False)):
        assert torch.equal(a(x), b(x))
        b.half()
    assert a.bias.dtype is torch.float32


def test_changing_dtype_keeps_the_quantised_bytes():
    layer = NVFP4Linear.from_linear(nn.Linear(64, 40))
    want = dense(layer)
    layer(torch.randn(1, 64))
    layer = layer.half()
    assert torch.equal(dense(layer), want)
    assert layer.bias.dtype is torch.float16 and layer.weight_scale_2.dtype is torch.float32
    assert layer(torch.randn(3, 64).half()).dtype is torch.float16


def test_mxfp4_layers_run_too():
    layer = NVFP4Linear.from_linear(nn.Linear(64, 40), format="mxfp4")
    x = torch.randn(3, 64)
    assert torch.allclose(layer(x), x @ dense(layer).T + layer.bias, atol=1e-4)
    assert set(layer.state_dict()) == {"weight", "weight_scale", "bias"}


def test_gradients_reach_x():
    layer = NVFP4Linear.from_linear(nn.Linear(64, 40))
    x = torch.randn(3, 64, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, dense(layer).sum(0).expand(3, 64), atol=1e-4)


def test_it_compiles_without_graph_breaks():
    layer = NVFP4Linear.from_linear(nn.Linear(64, 40)).eval()
    x = torch.randn(3, 64)
    with torch.no_grad():
        want = layer(x)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(x), want, atol=1e-6)


def test_it_compiles_before_it_ever_ran():
    """The layout is decided when a layer is made, not while it is traced."""
    layer = NVFP4Linear.from_linear(nn.Linear(64, 40)).eval()
    x = torch.randn(3, 64)
    with torch.no_grad():
        got = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
        assert torch.allclose(got, x @ dense(layer).T + layer.bias, atol=1e-5)


@pytest.mark.parametrize("prepared", [False, True])
def test_the_function_compiles_around_a_weight(prepared):
    weight, x = nvfp4_quantize(torch.randn(40, 64)), torch.randn(3, 64)
    if prepared:
        nvfp4_linear(x, weight)
    compiled = torch.compile(lambda a: nvfp4_linear(a, weight), fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), x @ nvfp4_dequantize(weight, torch.float32).T, atol=1e-4)


def test_quantize_model_leaves_layers_in_the_layout_of_their_kernels():
    model = nn.Sequential(nn.Linear(64, 40))
    quantize_model(model)
    want = preferred_layout(nvfp4_quantize(torch.randn(40, 64)))
    assert model[0].layout == want
    assert model[0].state_dict()["weight"].shape == (40, 32)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 32)
        self.inner = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.odd = nn.Linear(20, 8)
        self.head = nn.Linear(32, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.inner(self.embed(ids)))


def test_quantize_model_reports_every_layer():
    model = Tiny()
    ids = torch.arange(10)
    before = model(ids)
    report = quantize_model(model)
    by_name = {r.name: r for r in report}
    assert {n for n, r in by_name.items() if r.quantised} == {"inner.0", "inner.2"}
    assert by_name["odd"].reason == "in_features is not a multiple of 16"
    assert by_name["head"].reason == "weight is shared"
    assert 0.05 < by_name["inner.0"].error < 0.12 and by_name["inner.0"].cosine > 0.99
    assert by_name["inner.0"].bytes_after < by_name["inner.0"].bytes_before / 4
    assert report.worst(1)[0].error == max(r.error for r in report.quantised)
    assert "2 of 4 layers" in str(report)
    after = model(ids)
    assert nn.functional.cosine_similarity(before.flatten(), after.flatten(), 0) > 0.95


def test_include_and_exclude_are_globs():
    model = Tiny()
    report = quantize_model(model, include="inner.*", exclude=["*.2"])
    assert [r.name for r in report.quantised] == ["inner.0"]
    assert {r.reason for r in report if not r.quantised} == {"excluded", "not included"}
    with pytest.raises(ValueError, match=r"'blocks\.\*' matches no linear layer"):
        quantize_model(model, include="blocks.*")


def test_a_bad_weight_leaves_the_model_as_it_was():
    model = Tiny()
    with torch.no_grad():
        model.inner[2].weight[3, 3] = float("nan")
    with pytest.raises(ValueError, match=r"layer 'inner.2'.*NaN"):
        quantize_model(model)
    assert type(model.inner[0]) is nn.Linear


def test_a_copy_knows_nothing_of_scales_that_were_seen():
    """What was looked at is known by identity, which no copy, pickle or other tensor inherits."""
    layer = NVFP4Linear(64, 8)
    layer._seen.add(layer._buffers["weight_scale"])
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert not other._seen.has(other._buffers["weight_scale"])
    assert layer._seen.has(layer._buffers["weight_scale"])
    layer.load_state_dict(layer.state_dict())
    assert not layer._seen.has(layer._buffers["weight_scale"])
