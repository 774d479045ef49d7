"""4-bit layers that several threads share, and layers whose tensors a hook takes away and brings back."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import threading

import pytest
import torch
from torch import nn

from sgl_kernels.integrations.checkpoints import save_checkpoint
from sgl_kernels.integrations.nvfp4_linear import RANKS, NVFP4Linear
from sgl_kernels.integrations.quantize import quantize_model
from sgl_kernels.ops.nvfp4.api import nvfp4_dequantize, nvfp4_quantize
from sgl_kernels.ops.nvfp4.formats import LAYOUTS
from sgl_kernels.ops.nvfp4.layouts import to_layout

DEVICE = torch.device("cpu")


def same(a, b):
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


@pytest.fixture
def quick_switches():
    before, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(1e-5)
    torch.set_num_threads(1)
    yield
    sys.setswitchinterval(before)
    torch.set_num_threads(threads)


def together(count, work):
    gate, errors = threading.Barrier(count), []

    def run():
        gate.wait()
        try:
            errors.extend(work() or ())
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("look", [False, True], ids=["forward", "forward and state_dict"])
def test_threads_see_a_whole_layer_in_its_first_calls(quick_switches, look):
    """Also while one of them takes the state, which gives the linear layout."""
    layers = [NVFP4Linear.from_linear(nn.Linear(128, 128)) for _ in range(20)]
    states = [copy.deepcopy(layer.state_dict()) for layer in layers]
    x = torch.randn(4, 128)
    with torch.no_grad():
        want = [layer(x) for layer in layers]

    def work():
        found = []
        with torch.no_grad():
            for layer, value, state in zip(layers, want, states, strict=True):
                if not torch.equal(layer(x), value):
                    found.append("a wrong result")
                if look and not (
                    same(layer.weight, state["weight"]) and same(layer.weight_scale, state["weight_scale"])
                ):
                    found.append("a wrong state")
        return found

    for _ in range(25):
        for layer, state in zip(layers, states, strict=True):
            layer.load_state_dict(state)
        assert together(4, work) == []


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "aiter_shuffled"])
@pytest.mark.parametrize("shape", [(128, 64), (70, 80)])
def test_a_layer_tells_its_layout_by_its_buffers(layout, shape):
    """Through copies, pickles, moves and changes of dtype; its attributes stay linear."""
    assert set(RANKS.values()) == set(LAYOUTS)
    want = nvfp4_quantize(torch.randn(shape))
    layer = NVFP4Linear(shape[1], shape[0])
    layer.set_weight(to_layout(want, layout))
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (
        layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False),
        copy.deepcopy(layer).half(), copy.deepcopy(layer).to(DEVICE, torch.float64),
    ):  # fmt: skip
        assert torch.equal(
            nvfp4_dequantize(other.quantised_weight(), torch.float32), nvfp4_dequantize(want, torch.float32)
        )
        assert other.weight_scale_2.dtype is torch.float32
        assert same(other.state_dict()["weight"], want.data)
        assert same(other.weight_scale, want.block_scale) and other.layout == "linear"
        assert same(other.weight, want.data)


def test_a_meta_layer_becomes_an_empty_one_and_is_filled():
    with torch.device("meta"):
        layer = NVFP4Linear(64, 48)
    layer = layer.to_empty(device="cpu")
    assert layer.weight.device == DEVICE and layer.weight_scale.dtype is torch.float8_e4m3fn
    source = NVFP4Linear.from_linear(nn.Linear(64, 48))
    layer.load_state_dict(source.state_dict())
    x = torch.randn(2, 64)
    with torch.no_grad():
        assert torch.equal(layer(x), source(x))


@pytest.mark.parametrize("assign", [False, True])
def test_states_load_copied_and_assigned(assign):
    source, layer = (NVFP4Linear.from_linear(nn.Linear(64, 48), activation="nvfp4") for _ in range(2))
    source.calibrate(0.01)
    source.scale_inputs(torch.rand(64) + 0.5)
    x = torch.randn(2, 64)
    with torch.no_grad():
        layer(x)
        layer.load_state_dict(source.state_dict(), assign=assign)
        assert torch.equal(layer(x), source(x)) and layer.is_calibrated


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("weight_scale", lambda t: t.view(torch.uint8)[0, :1].fill_(0x7F), "has NaN in 1"),
        ("weight_scale", lambda t: t.view(torch.uint8)[0, :1].fill_(0x80), "has 1 negative"),
        ("weight_scale_2", lambda t: t.fill_(0.0), "is 0.0, expected a positive"),
        ("weight_scale_2", lambda t: t.fill_(float("nan")), "is nan"),
        ("input_scale", lambda t: t.fill_(-1.0), "is -1.0"),
        ("input_scale", lambda t: t.fill_(float("inf")), "is inf"),
    ],
)
def test_states_with_scales_that_are_none_do_not_load(name, change, message):
    layer = NVFP4Linear.from_linear(nn.Linear(64, 48))
    before = copy.deepcopy(layer.state_dict())
    state = copy.deepcopy(before)
    change(state[name])
    with pytest.raises(RuntimeError, match=f"{name} {message}"):
        layer.load_state_dict(state)
    for key, value in layer.state_dict().items():
        assert same(value, before[key])


@pytest.mark.parametrize("wrong", ["bytes", "negative floats"])
def test_scales_of_another_dtype_are_not_copied_as_numbers(wrong):
    layer = NVFP4Linear.from_linear(nn.Linear(64, 48))
    state = layer.state_dict()
    scale = state["weight_scale"]
    state["weight_scale"] = scale.view(torch.uint8) if wrong == "bytes" else -scale.float()
    with pytest.raises(RuntimeError, match=r"weight_scale (is torch.uint8, expected|has 192 negative)"):
        layer.load_state_dict(state)
    state["weight_scale"] = scale.float()
    layer.load_state_dict(state)
    assert same(layer.weight_scale, scale)


class Fake:
    """What accelerate's hook does, one tensor after the other: to meta, back by name and shape, to meta."""

    def __init__(self, module):
        self.kept = {n: t.clone() for n, t in module.state_dict().items()}
        self.leave(module)

    def set(self, module, name, value):
        owner = module.get_submodule(name.rpartition(".")[0])
        leaf = name.rpartition(".")[2]
        old = getattr(owner, leaf)
        assert value is None or old.shape == value.shape, f"{name}: {value.shape} for {old.shape}"
        new = old.detach().to("meta") if value is None else value.to(old.dtype)
        if leaf in owner._buffers:
            owner._buffers[leaf] = new
        else:
            owner._parameters[leaf] = nn.Parameter(new)

    def enter(self, module):
        for name in self.kept:
            self.set(module, name, self.kept[name].clone())

    def leave(self, module):
        for name in self.kept:
            self.set(module, name, None)


def network(activation="bf16"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Sequential(nn.Linear(48, 128), nn.Linear(128, 16)))
    quantize_model(model, activation=activation)
    model[0].scale_inputs(torch.rand(64) + 0.5)
    return model.eval()


@pytest.mark.parametrize("activation", ["bf16", "int8", "nvfp4"])
def test_a_hook_that_takes_every_tensor_away_gives_the_same_numbers(activation):
    model, x = network(activation), torch.randn(3, 64)
    with torch.no_grad():
        want = model(x)
        hook = Fake(model)
        assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
        for _ in range(3):
            hook.enter(model)
            assert torch.equal(model(x), want)
            hook.leave(model)
        hook.enter(model)
        assert torch.equal(copy.deepcopy(model)(x), want)


@pytest.mark.parametrize("activation", ["bf16", "int8", "nvfp4"])
@pytest.mark.parametrize("how", ["cpu", "parameters", "disk", "map", "blocks"])
def test_accelerate_offloads_a_quantised_model(tmp_path, how, activation):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model, x = network(activation), torch.randn(3, 64)
    with torch.no_grad():
        want = model(x)
        if how == "cpu":
            accelerate.cpu_offload(model, execution_device=DEVICE, offload_buffers=True)
        elif how == "parameters":  # the default: buffers, and with them the weights, stay
            accelerate.cpu_offload(model, execution_device=DEVICE)
        elif how == "disk":
            accelerate.disk_offload(model, tmp_path, execution_device=DEVICE, offload_buffers=True)
        elif how == "map":
            model = accelerate.dispatch_model(
                model, {"0": "cpu", "1": "cpu", "2": "disk"}, main_device="cpu", offload_dir=str(tmp_path),
                offload_buffers=True, force_hooks=True,
            )  # fmt: skip
        else:
            accelerate.cpu_offload(model, DEVICE, offload_buffers=True, preload_module_classes=["Sequential"])
        for _ in range(2):
            assert torch.equal(model(x), want)
        accelerate.hooks.remove_hook_from_submodules(model)
    assert hasattr(model[0], "quantised_weight")


def test_an_offloaded_model_is_saved_as_it_was(tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = network()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    accelerate.cpu_offload(model, DEVICE, offload_buffers=True)
    model(torch.randn(2, 64))
    with pytest.raises(ValueError, match=r"'0.weight' is on the meta device|'0.bias' is on the meta device"):
        save_checkpoint(model, tmp_path / "none")
    assert not list((tmp_path / "none").iterdir())
    accelerate.hooks.remove_hook_from_module(model, recurse=True)
    for name, value in state.items():
        assert same(model.state_dict()[name], value), name
    save_checkpoint(model, tmp_path)
