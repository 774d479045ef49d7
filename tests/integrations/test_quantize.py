"""quantize_model: which layers it replaces, under which names, and why it leaves the others alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sgl_kernels.integrations.nvfp4_linear import NVFP4Linear
from sgl_kernels.integrations.quantize import quantize_model
from sgl_kernels.ops.nvfp4.api import nvfp4_dequantize


def reasons(model):
    return {r.name: r.reason for r in quantize_model(model)}


@pytest.mark.parametrize("make", [lambda: nn.Linear(64, 48), lambda: type("Own", (nn.Linear,), {})(64, 48)])
def test_a_layer_cannot_be_replaced_inside_itself(make):
    layer = make()
    with pytest.raises(ValueError, match=r"model is itself an nn\.Linear.*from_linear"):
        quantize_model(layer)
    assert layer.weight.dtype is torch.float32


def test_a_layer_with_several_names_is_replaced_under_all_of_them():
    layer = nn.Linear(64, 64)
    model = nn.ModuleDict(
        {"a": layer, "b": nn.Sequential(layer, nn.Linear(64, 32)), "c": nn.ModuleList([layer])}
    )
    report = quantize_model(model, include="b.*")
    assert [r.name for r in report if r.quantised] == ["a", "b.1"]
    assert isinstance(model["a"], NVFP4Linear)
    assert model["a"] is model["b"][0] is model["c"][0]


def test_a_layer_excluded_under_one_of_its_names_is_left_alone():
    layer = nn.Linear(64, 64)
    model = nn.ModuleDict({"a": layer, "head": layer, "b": nn.Linear(64, 64)})
    assert [r.name for r in quantize_model(model, exclude="head").quantised] == ["b"]
    assert model["a"] is model["head"] is layer


class Own(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(64, 64)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(64, 16, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(16, 64, bias=False)})

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def weight_of(layer, value):
    layer.weight = nn.Parameter(value, requires_grad=False)
    return layer


def hooked():
    layer = nn.Linear(64, 64)
    layer.register_forward_hook(lambda module, args, out: 2 * out)
    return layer


def patched():
    layer = nn.Linear(64, 64)
    layer.forward = lambda x: x
    return layer


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda: Own(64, 64), "is a Own"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)), "is a ParametrizedLinear"),
        (hooked, "has hooks or a forward of its own"),
        (patched, "has hooks or a forward of its own"),
        (lambda: nn.utils.spectral_norm(nn.Linear(64, 64)), "has hooks or a forward of its own"),
        (lambda: weight_of(nn.Linear(64, 64), torch.zeros(64, 64, dtype=torch.int8)), "weight is torch.int8"),
        (
            lambda: weight_of(nn.Linear(64, 64), torch.zeros(64, 64).to(torch.float8_e4m3fn)),
            "weight is torch.float8_e4m3fn",
        ),
        (lambda: nn.Linear(72, 64), "in_features is not a multiple of 16"),
        pytest.param(
            lambda: nn.Linear(0, 64), "weight has no elements",
            marks=pytest.mark.filterwarnings("ignore:Initializing zero-element"),
        ),
        pytest.param(
            lambda: nn.Linear(64, 0), "weight has no elements",
            marks=pytest.mark.filterwarnings("ignore:Initializing zero-element"),
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_replaced_is_left_alone_and_says_why(make, reason):
    model = nn.Sequential(make(), nn.Linear(64, 64))
    before = model[0]
    assert reasons(model) == {"0": reason, "1": ""}
    assert model[0] is before and isinstance(model[1], NVFP4Linear)


def test_layers_whose_weight_torch_reads_itself_keep_it():
    model = nn.Sequential(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), nn.Linear(64, 16)).eval()
    x = torch.randn(2, 5, 64)
    found = reasons(model)
    assert found["0.linear1"] == "TransformerEncoderLayer reads its weight itself" and found["1"] == ""
    with torch.no_grad():
        assert model(x).isfinite().all()


def test_adapters_stay_trainable_and_their_base_is_quantised():
    model = nn.Sequential(Adapted())
    found = reasons(model)
    assert found == {
        "0.base_layer": "",
        "0.lora_A.default": "an adapter beside base_layer",
        "0.lora_B.default": "an adapter beside base_layer",
    }
    model(torch.randn(2, 64)).sum().backward()
    assert model[0].lora_A["default"].weight.grad.abs().sum() > 0


def test_a_weight_without_data_is_an_error_and_changes_nothing():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64, device="meta"))
    with pytest.raises(ValueError, match="layer '1': weight is on the meta device"):
        quantize_model(model)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_strided_weights_of_every_dtype(dtype):
    """A transposed and a sliced weight give what their values give."""
    wide = torch.randn(64, 128).to(dtype)
    for weight in (wide[:, :64].t(), wide[:, ::2]):
        model, plain = (nn.Sequential(nn.Linear(64, 64, dtype=dtype)) for _ in range(2))
        model[0].weight = nn.Parameter(weight)
        plain[0].weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
        quantize_model(model)
        quantize_model(plain)
        for name in ("weight", "weight_scale"):
            a, b = (m[0].state_dict()[name].view(torch.uint8) for m in (model, plain))
            assert torch.equal(a, b)


def test_quantised_under_inference_mode_a_model_still_trains():
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 48))
    x = torch.randn(3, 64)
    with torch.inference_mode():
        quantize_model(model)
        model(x)
        model.half().float()
        model(x)  # packed once more
        model.load_state_dict(copy.deepcopy(model.state_dict()))
        want = model(x)
    x.requires_grad_()
    out = model(x)
    out.sum().backward()
    assert torch.allclose(out.detach(), want, atol=1e-5)  # another backend serves gradients
    dense = nn.Sequential(*(nn.Linear(a, b) for a, b in ((64, 64), (64, 48))))
    for layer, found in zip(dense, (model[0], model[2]), strict=True):
        layer.weight = nn.Parameter(nvfp4_dequantize(found.quantised_weight(), torch.float32))
        layer.bias = found.bias
    check = x.detach().clone().requires_grad_()
    dense[1](nn.functional.gelu(dense[0](check))).sum().backward()
    assert torch.allclose(x.grad, check.grad, atol=1e-5)


def test_the_function_called_under_inference_mode_first_still_trains():
    from sgl_kernels import nvfp4_linear, nvfp4_quantize

    weight, x = nvfp4_quantize(torch.randn(48, 64)), torch.randn(3, 64)
    with torch.inference_mode():
        nvfp4_linear(x, weight)
    x.requires_grad_()
    nvfp4_linear(x, weight).sum().backward()
    assert torch.allclose(x.grad, nvfp4_dequantize(weight, torch.float32).sum(0).expand(3, 64), atol=1e-4)
