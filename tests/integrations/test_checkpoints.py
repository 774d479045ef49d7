"""NVFP4 checkpoints: four libraries' layouts, shards, both readers, and failures that leave the model alone."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from sgl_kernels.integrations import checkpoints_files
from sgl_kernels.integrations.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from sgl_kernels.integrations.nvfp4_linear import NVFP4Linear
from sgl_kernels.integrations.quantize import quantize_model
from sgl_kernels.ops.nvfp4.api import nvfp4_dequantize

DATA = Path(__file__).resolve().parents[1] / "data"
LIBRARIES = ("modelopt", "compressed_tensors", "torchao", "torchao_swizzled")


class One(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(64, 48)


class Net(nn.Module):
    def __init__(self, device=None):
        super().__init__()
        self.a = nn.Linear(64, 96, device=device)
        self.norm = nn.LayerNorm(96, device=device)
        self.b = nn.Sequential(nn.Linear(96, 32, bias=False, device=device), nn.Linear(32, 20, device=device))

    def forward(self, x):
        return self.b(self.norm(self.a(x)))


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}, [type(m) for m in model.modules()]


def assert_untouched(model, before):
    state, types_ = before
    assert [type(m) for m in model.modules()] == types_
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("library", LIBRARIES)
def test_other_libraries_own_files_load_to_their_own_values(library):
    model = One()
    file = DATA / f"nvfp4_{library}.safetensors"
    report = load_checkpoint(model, file, ignore=["expected"])
    expected = load_file(file)["expected"]
    assert report.quantised == ("proj",) and report.ignored == ("expected",)
    got = nvfp4_dequantize(model.proj.quantised_weight(), torch.float32)
    # compressed-tensors dequantises to bf16, and divides by its encode scale
    tolerance = 2**-8 if library == "compressed_tensors" else 1e-6
    assert ((got - expected).abs() <= tolerance * expected.abs()).all()
    assert torch.equal(model.proj.bias, torch.arange(48).float())
    if library in ("modelopt", "compressed_tensors"):
        assert model.proj.activation == "nvfp4"
        assert model.proj.input_scale.item() == pytest.approx(0.003)
    else:
        assert model.proj.activation == "bf16" and not model.proj.is_calibrated


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 3000])
@pytest.mark.parametrize("device", [None, "meta"])
def test_what_is_saved_comes_back(tmp_path, shard_bytes, device):
    torch.manual_seed(0)
    model = Net()
    quantize_model(model, exclude="b.1")
    model.a.calibrate(0.01)
    x = torch.randn(5, 64)
    written = save_checkpoint(model, tmp_path, max_shard_bytes=shard_bytes)
    if shard_bytes < 10_000:
        assert len([p for p in written if p.name.startswith("model-")]) > 1
    config = json.loads((tmp_path / "hf_quant_config.json").read_text())["quantization"]
    assert config == {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["b.1"]}
    fresh = Net(device)
    report = load_checkpoint(fresh, tmp_path, activation="bf16")
    assert set(report.quantised) == {"a", "b.0"} and report.spelling == "modelopt"
    with torch.no_grad():
        assert torch.equal(fresh(x), model(x))
    assert fresh.a.is_calibrated and not fresh.b[0].is_calibrated
    assert not list(tmp_path.glob("*.part"))


def test_saved_keys_are_modelopts(tmp_path):
    model = One()
    quantize_model(model)
    save_checkpoint(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {"proj.weight", "proj.weight_scale", "proj.weight_scale_2", "proj.bias"}
        assert file.get_slice("proj.weight").get_dtype() == "U8"
        assert file.get_slice("proj.weight_scale").get_dtype() == "F8_E4M3"


def test_loading_into_a_quantised_model_replaces_its_weights(tmp_path):
    a, b = One(), One()
    quantize_model(a)
    quantize_model(b)
    b.proj(torch.randn(1, 64))  # packed
    save_checkpoint(a, tmp_path)
    load_checkpoint(b, tmp_path)
    x = torch.randn(3, 64)
    assert torch.equal(a.proj(x), b.proj(x))


@pytest.fixture
def saved(tmp_path):
    model = Net()
    quantize_model(model, exclude="b.1")
    save_checkpoint(model, tmp_path)
    return tmp_path / "model.safetensors"


def rewrite(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("norm.weight"), "'norm.weight' of the model is missing from model.safetensors"),
        (lambda t: t.pop("a.weight"), r"'a.weight_scale.*' in model.safetensors has no place"),
        (lambda t: t.pop("a.weight_scale"), "'a.weight_scale' is missing; 'a.weight' in model.safetensors"),
        (lambda t: t.pop("a.weight_scale_2"), "'a.weight_scale_2' is missing"),
        (lambda t: t.update(extra=torch.zeros(2)), "'extra' in model.safetensors has no place in the model"),
        (lambda t: t.update({"norm.bias": torch.zeros(95)}), r"'norm.bias' in .* has shape \[95\]"),
        (lambda t: t.update({"a.weight": t["a.weight"][:, :24].contiguous()}), r"expected \[96, 3\]"),
        (lambda t: t.update({"a.weight_scale": t["a.weight_scale"].float()}), "expected float8_e4m3fn"),
        (
            lambda t: t.update({"a.weight_scale_2": torch.tensor(float("nan"))}),
            "expected a positive finite number",
        ),
        (lambda t: t.update({"a.weight_scale_2": torch.tensor([1.0, 2.0])}), "fused partitions"),
        (
            lambda t: t.update({"b.1.weight": torch.zeros(20, 16, dtype=torch.uint8)}),
            "'b.1.weight_scale' is missing",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_the_key_and_changes_nothing(saved, change, message):
    rewrite(saved, change)
    model = Net()
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model, saved)
    assert_untouched(model, before)


def test_a_layer_of_another_size_is_refused(saved):
    model = Net()
    model.a = nn.Linear(64, 80)
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=r"64 -> 96, the model's 'a' is 64 -> 80"):
        load_checkpoint(model, saved)
    assert_untouched(model, before)


@pytest.mark.parametrize("lost", [1, 500, 10**9])
def test_a_truncated_file_names_what_it_lost(saved, lost):
    raw = saved.read_bytes()
    saved.write_bytes(raw[: max(4, len(raw) - lost)])
    model = Net()
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is (truncated: '|not a safetensors file)"):
        load_checkpoint(model, saved)
    assert_untouched(model, before)


def test_a_missing_shard_is_named_with_a_key_it_holds(tmp_path):
    model = Net()
    quantize_model(model)
    shards = save_checkpoint(model, tmp_path, max_shard_bytes=3000)
    shards[0].unlink()
    with pytest.raises(CheckpointError, match=f"shard {shards[0].name} .* is missing; it holds"):
        load_checkpoint(Net(), tmp_path)


def test_keys_can_be_renamed_and_ignored(tmp_path):
    model = One()
    quantize_model(model)
    tensors = {f"model.{k}": v for k, v in model.state_dict().items() if not k.endswith("input_scale")}
    save_file(tensors | {"junk.x": torch.zeros(1)}, tmp_path / "x.safetensors")
    fresh = One()
    report = load_checkpoint(
        fresh,
        tmp_path / "x.safetensors",
        rename=lambda n: n.removeprefix("model").lstrip("."),
        ignore=["junk.*"],
    )
    assert report.ignored == ("junk.x",)
    assert torch.equal(fresh.proj.state_dict()["weight"], model.proj.state_dict()["weight"])


def test_high_nibble_first_files_load_when_told(tmp_path):
    model = One()
    quantize_model(model)
    save_checkpoint(model, tmp_path)
    file = tmp_path / "model.safetensors"
    rewrite(file, lambda t: t.update({"proj.weight": (t["proj.weight"] << 4) | (t["proj.weight"] >> 4)}))
    fresh = One()
    load_checkpoint(fresh, file, swap_nibbles=True)
    assert torch.equal(fresh.proj.state_dict()["weight"], model.proj.state_dict()["weight"])


class FakeStreamer:
    """The streamer's contract: tensors are views of one buffer that the next file overwrites."""

    files: list[str] = []  # noqa: RUF012

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.stale.fill_(0)

    def stream_file(self, path):
        self.files.append(path)
        self.path = path

    def get_tensors(self):
        tensors = load_file(self.path)
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        self.stale = torch.empty(total + 64 * len(tensors), dtype=torch.uint8)
        at = 0
        for name, t in tensors.items():
            size = t.numel() * t.element_size()
            view = self.stale[at : at + size]
            view.copy_(t.contiguous().reshape(-1).view(torch.uint8))
            yield name, view.view(t.dtype).reshape(t.shape)
            at += -(-size // 64) * 64


@pytest.mark.parametrize("library", LIBRARIES)
def test_streamed_and_mapped_tensors_are_the_same(library, monkeypatch):
    module = types.ModuleType("runai_model_streamer")
    module.SafetensorsStreamer = FakeStreamer
    monkeypatch.setitem(sys.modules, "runai_model_streamer", module)
    contents = checkpoints_files.open_checkpoint(DATA / f"nvfp4_{library}.safetensors")
    keys = set(contents.entries)
    mapped = dict(checkpoints_files.read_tensors(contents, keys, streamer=False))
    streamed = dict(checkpoints_files.read_tensors(contents, keys, streamer=True))
    assert FakeStreamer.files and mapped.keys() == streamed.keys() == keys
    for key in keys:
        a, b = mapped[key], streamed[key]
        assert a.dtype == b.dtype and a.shape == b.shape
        assert torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def test_the_real_streamer_gives_the_same_tensors():
    pytest.importorskip("runai_model_streamer")
    for library in LIBRARIES:
        contents = checkpoints_files.open_checkpoint(DATA / f"nvfp4_{library}.safetensors")
        keys = set(contents.entries)
        mapped = dict(checkpoints_files.read_tensors(contents, keys, streamer=False))
        for key, got in checkpoints_files.read_tensors(contents, keys, streamer=True):
            assert got.dtype == mapped[key].dtype and got.shape == mapped[key].shape
            assert torch.equal(got.reshape(-1).view(torch.uint8), mapped[key].reshape(-1).view(torch.uint8))


@pytest.mark.parametrize(
    "wanted, installed, used", [(True, True, True), (True, False, False), (False, True, False)]
)
def test_the_streamer_is_used_when_wanted_and_installed(wanted, installed, used, monkeypatch):
    import dataclasses

    from sgl_kernels.core import dispatch

    settings = dispatch.current().settings
    runtime = dataclasses.replace(settings.runtime, use_runai_model_streamer=wanted)
    monkeypatch.setattr(checkpoints_files, "installed_version", lambda name: "0.17" if installed else None)
    with dispatch.activate(dispatch.current().derive(dataclasses.replace(settings, runtime=runtime))):
        assert checkpoints_files.use_streamer() is used


def test_a_reader_that_fails_names_the_file(saved, monkeypatch):
    def broken(file, keys):
        raise OSError("disk on fire")
        yield

    monkeypatch.setattr(checkpoints_files, "_mapped", broken)
    model = Net()
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read: OSError: disk on fire"):
        load_checkpoint(model, saved, streamer=False)
    assert_untouched(model, before)


def test_quantised_layers_are_linear_layers_of_the_model():
    model = nn.ModuleDict({"proj": nn.Embedding(48, 64)})
    with pytest.raises(CheckpointError, match="the model has Embedding at 'proj'"):
        load_checkpoint(model, DATA / "nvfp4_modelopt.safetensors")
    assert not any(isinstance(m, NVFP4Linear) for m in model.modules())
