"""What a checkpoint's layers become: factors of AWQ, shared layers, tied weights, layers that cannot be one."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sgl_kernels.integrations.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from sgl_kernels.integrations.nvfp4_linear import NVFP4Linear
from sgl_kernels.integrations.quantize import quantize_model
from sgl_kernels.ops.nvfp4.api import nvfp4_dequantize
from tests.integrations.test_checkpoints_scales import FILE, ODD, model_of, parts, saved, value, weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["bf16", "int8", "nvfp4"])
def test_awqs_factors_are_applied_to_the_input(tmp_path, activation, dtype):
    w, factors = weights("rows", ODD), torch.rand(96) * 3 + 0.1
    made, held = parts(w / factors)
    made["pre_quant_scale"] = factors.bfloat16()
    file = saved(tmp_path, {"p": made})
    (tmp_path / "hf_quant_config.json").write_text(
        '{"quantization": {"quant_algo": "NVFP4_AWQ", "group_size": 16}}'
    )
    model = model_of(p=ODD)
    with pytest.raises(CheckpointError, match=r"'p.pre_quant_scale' .* pass input_factors=True") as found:
        load_checkpoint(model, file)
    assert "ignore" not in str(found.value)
    x = torch.randn(5, 96).to(dtype)
    for accepted in ({"input_factors": True}, {"ignore": ["*.pre_quant_scale"]}):
        model = model_of(p=ODD)
        assert load_checkpoint(model, file, activation=activation, **accepted).ignored == ()
        plain = NVFP4Linear(96, 48, False, activation=activation)
        plain.set_weight(model["p"].quantised_weight())
        with torch.no_grad():
            got = model["p"](x)
            assert got.dtype is dtype and torch.equal(got, plain((x * factors.bfloat16().float()).to(dtype)))
        if activation == "bf16":
            want = (x.double() * factors.bfloat16().double()) @ held.double().T
            assert (got.double() - want).norm() / want.norm() < (1e-5 if dtype is torch.float32 else 0.01)
    save_checkpoint(model, tmp_path / "again")
    config = json.loads((tmp_path / "again" / "hf_quant_config.json").read_text())["quantization"]
    assert config["quant_algo"] == "NVFP4_AWQ"
    other = model_of(p=ODD)
    load_checkpoint(other, tmp_path / "again", activation=activation, input_factors=True)
    with torch.no_grad():
        assert torch.equal(other["p"](x), got)


def test_factors_follow_gradients_moves_and_states():
    layer = NVFP4Linear.from_linear(nn.Linear(64, 48))
    factors = torch.rand(64) + 0.5
    layer.scale_inputs(factors)
    x = torch.randn(3, 64, requires_grad=True)
    layer(x).sum().backward()
    want = nvfp4_dequantize(layer.quantised_weight(), torch.float32).sum(0) * factors
    assert torch.allclose(x.grad, want.expand(3, 64), atol=1e-4)
    assert layer.half().pre_quant_scale.dtype is torch.float32
    other = NVFP4Linear(64, 48)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.pre_quant_scale, factors)
    layer.scale_inputs(None)
    other.load_state_dict(layer.state_dict())
    assert other.pre_quant_scale is None
    with pytest.raises(ValueError, match=r"factors is torch.float32 \[5\], expected floats \[64\]"):
        layer.scale_inputs(torch.ones(5))


def shared_model(device=None):
    layer = nn.Linear(64, 64, device=device)
    model = nn.ModuleDict(
        {
            "a": layer,
            "b": nn.Sequential(layer, nn.Linear(64, 64, device=device)),
            "e": nn.Embedding(64, 64, device=device),
        }
    )
    model["h"] = nn.Linear(64, 64, bias=False, device=device)
    model["h"].weight = model["e"].weight
    return model


@pytest.mark.parametrize("device", [None, "meta"])
def test_shared_layers_and_tied_weights_are_saved_once_and_loaded_everywhere(tmp_path, device):
    model = shared_model()
    quantize_model(model, exclude="b.1")
    save_checkpoint(model, tmp_path)
    keys = set(load_file(tmp_path / FILE))
    assert not any(k.startswith(("b.0", "h.")) for k in keys)
    fresh = shared_model(device)
    load_checkpoint(fresh, tmp_path)
    assert isinstance(fresh["a"], NVFP4Linear) and fresh["a"] is fresh["b"][0]
    assert fresh["h"].weight is fresh["e"].weight and not fresh["h"].weight.is_meta
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.float(), fresh.state_dict()[name].float()), name


class Own(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    model = model_of(p=ODD)
    model["p"].register_forward_hook(lambda module, args, out: 2 * out)
    return model


@pytest.mark.parametrize(
    "make, match",
    [
        (hooked, "'p' has hooks or a forward of its own"),
        (lambda: nn.ModuleDict({"p": Own(96, 48, bias=False)}), "the model has Own at 'p'"),
        (
            lambda: nn.TransformerEncoderLayer(96, 2, 48, bias=False),
            "'linear1' cannot be one: TransformerEncoderLayer reads its weight itself",
        ),
        (lambda: nn.Linear(96, 48, bias=False), "is the whole model, which cannot be replaced"),
        (lambda: NVFP4Linear(96, 48, bias=False), "is the whole model, which cannot be replaced"),
    ],
)
def test_layers_that_cannot_be_replaced_are_refused(tmp_path, make, match):
    model = make()
    name = {nn.ModuleDict: "p", nn.TransformerEncoderLayer: "linear1"}.get(type(model), "")
    file = saved(tmp_path, {"p": parts(weights("rows", ODD))[0]})
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(model, file, rename=lambda _: name, ignore="*")


def test_a_load_under_inference_mode_still_trains(tmp_path):
    file = saved(tmp_path, {"p": parts(weights("rows", ODD))[0]})
    model = model_of(p=ODD).to("meta")
    with torch.inference_mode():
        load_checkpoint(model, file)
        model["p"](torch.randn(2, 96))
    x = torch.randn(2, 96, requires_grad=True)
    model["p"](x).sum().backward()
    assert torch.allclose(x.grad[0], value(model, "p").sum(0), atol=1e-4)
