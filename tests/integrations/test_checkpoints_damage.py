"""Damaged checkpoints: whatever stands in their files is a CheckpointError by name, and the model stays as it was."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from sgl_kernels.core.selection.packages import installed_version
from sgl_kernels.integrations.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from sgl_kernels.integrations.checkpoints_files import open_checkpoint, read_tensors
from sgl_kernels.integrations.checkpoints_header import read_header, shown
from sgl_kernels.integrations.quantize import quantize_model

FILE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "hf_quant_config.json"
KEY = "0.weight"
DEEP = "[" * 100_000
HAVE_STREAMER = installed_version("runai-model-streamer") is not None
READERS = [
    False,
    pytest.param(True, marks=pytest.mark.skipif(not HAVE_STREAMER, reason="no Run:AI streamer")),
]


def network():
    return nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 16))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    root, model = tmp_path_factory.mktemp("damage"), network()
    quantize_model(model)
    save_checkpoint(model, root / "one")
    save_checkpoint(model, root / "many", max_shard_bytes=1500)
    return root


@pytest.fixture
def copied(source, tmp_path):
    def copy(which):
        shutil.copytree(source / which, tmp_path / which)
        return tmp_path / which

    return copy


def refused(folder, match="", streamer=None):
    """The one error, and a model of the same types, bits and objects as before."""
    model = network()
    before = {k: (v, v.clone()) for k, v in model.state_dict(keep_vars=True).items()}
    with pytest.raises(CheckpointError, match=match) as found:
        load_checkpoint(model, folder, streamer=streamer)
    assert len(str(found.value)) < 1000 and str(found.value).isprintable()
    assert [type(m) for m in model] == [nn.Linear, nn.Linear]
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is before[name][0] and torch.equal(tensor, before[name][1])


def split(file):
    raw = file.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write(file, header, data):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def entry(**change):
    return lambda h: {**h, KEY: {k: v for k, v in {**h[KEY], **change}.items() if v is not None}}


@pytest.mark.parametrize("streamer", READERS)
@pytest.mark.parametrize(
    "change, match",
    [
        (lambda h: [1, 2], "damaged header"),
        (lambda h: b'"text"', "damaged header"),
        (lambda h: DEEP.encode(), "damaged header"),
        (lambda h: b'{"a":' + DEEP.encode(), "not JSON in UTF-8: it is nested too deeply"),
        (lambda h: b'{"a": "\xff\xfe"}', "header of model.safetensors is not JSON in UTF-8"),
        (lambda h: b'{"a": ' + b"9" * 5000 + b"}", "header of model.safetensors is not JSON"),
        (lambda h: b'{"a": NaN}', "'a' in model.safetensors is a number"),
        (lambda h: json.dumps(h).encode()[:-1] + b', "0.weight": 5}', "names '0.weight' twice"),
        (lambda h: {**h, KEY: 5}, "'0.weight' in model.safetensors is a number"),
        (lambda h: {**h, KEY: None}, "'0.weight' in model.safetensors is null"),
        (lambda h: {**h, KEY: []}, "'0.weight' in model.safetensors is a list"),
        (lambda h: {**h, "\ud800": h[KEY]}, "name that is not text"),
        (lambda h: {**h, "x" * 10**6: 5}, r"\(1000002 letters\) in model.safetensors is a number"),
        (lambda h: {**h, "": 5}, "'' in model.safetensors is a number"),
        (lambda h: {**h, "a\0b": 5}, r"'a\\x00b' in model.safetensors is a number"),
        (lambda h: {**h, "__metadata__": [1]}, "__metadata__ of model.safetensors is a list"),
        (lambda h: {**h, "__metadata__": {"a": 1}}, "expected an object of texts"),
        (entry(dtype=None), "'0.weight' in model.safetensors has no dtype"),
        (entry(shape=None), "has no shape"),
        (entry(data_offsets=None), "has no data_offsets"),
        (entry(dtype="F4"), "has dtype 'F4', which is not supported"),
        (entry(dtype=["U8"]), r"has dtype \['U8'\]"),
        (entry(shape=["48", 32]), "expected a list of whole numbers"),
        (entry(shape=[-48, -32]), "expected a list of whole numbers"),
        (entry(shape=[48.0, 32]), "expected a list of whole numbers"),
        (entry(shape=[True, 1536]), "expected a list of whole numbers"),
        (entry(shape=[1 << 70]), "expected a list of whole numbers"),
        (entry(shape=[1 << 40, 1 << 40]), r"bytes, which is not torch.uint8"),
        (entry(shape=[1] * 65), "expected a list of whole numbers"),
        (entry(shape={"a": 1}), "expected a list of whole numbers"),
        (entry(data_offsets=[0]), "expected two whole numbers"),
        (entry(data_offsets=[0, 1, 2]), "expected two whole numbers"),
        (entry(data_offsets="01"), "expected two whole numbers"),
        (entry(data_offsets=[0.0, 1536.0]), "expected two whole numbers"),
        (entry(data_offsets=[-1536, 0]), "expected 0 <= begin <= end"),
        (entry(data_offsets=[1536, 0]), "expected 0 <= begin <= end"),
        (entry(data_offsets=[10**9, 10**9 + 1536]), "is truncated: '0.weight' ends"),
        (lambda h: {**h, "1.bias": {**h["1.bias"], "data_offsets": [0, 0]}}, "bytes, which"),
        (lambda h: {**h, "again": h[KEY]}, "overlaps"),
        (lambda h: {k: v for k, v in h.items() if k != KEY}, "leaves 1536 bytes after|has 1536 bytes after its last"),
        (lambda h: {}, "bytes after its last tensor"),
    ],
)  # fmt: skip
def test_headers_of_the_wrong_shape(copied, change, match, streamer):
    folder = copied("one")
    header, data = split(folder / FILE)
    write(folder / FILE, change(header), data)
    refused(folder, match, streamer)
    refused(folder / FILE, match, streamer)


@pytest.mark.parametrize(
    "raw", [b"", b"\0", b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 2), struct.pack("<Q", 9) + b"{}"]
)
def test_files_without_a_header(copied, raw):
    folder = copied("one")
    (folder / FILE).write_bytes(raw)
    refused(folder, "model.safetensors is not a safetensors file")


def replaced(file, by):
    file.unlink()
    by(file)


@pytest.mark.parametrize(
    "by, match",
    [
        (lambda f: f.mkdir(), "is a folder, expected a file"),
        (lambda f: f.symlink_to("gone"), "is a link to nothing"),
        (lambda f: f.symlink_to(f.name), "cannot be opened: Too many"),
        (lambda f: f.symlink_to(f.parent), "is a folder, expected a file"),
        (os.mkfifo, "is no regular file"),
        (lambda f: f.symlink_to("/dev/zero"), "is no regular file"),
        (lambda f: f.symlink_to(f"{CONFIG}/x"), "cannot be opened: Not a directory"),
    ],
)
@pytest.mark.parametrize("name", [FILE, CONFIG, INDEX])
def test_what_is_no_file(copied, name, by, match):
    folder = copied("many" if name == INDEX else "one")
    if name == CONFIG:
        (folder / "config.json").write_text("{}")
    replaced(folder / name, by)
    if "Not a directory" in match and name == CONFIG:
        match = "cannot be opened"  # a link through itself
    refused(folder, f"{name[-10:]}.*{match}")  # a long path is cut in the middle


def test_a_file_that_cannot_be_opened_is_named(copied, monkeypatch):
    folder = copied("one")
    real = Path.open

    def denied(self, *args, **kwargs):
        if self.name in (FILE, CONFIG):
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", denied)
    refused(folder, "model.safetensors cannot be read: Permission denied")


@pytest.mark.parametrize(
    "path", ["gone", "gone/model.safetensors", "a\0b", "x" * 5000, "\ud800", "one/model.safetensors/x"]
)
def test_paths_that_lead_nowhere(source, path):
    refused(source / path, "does not exist|cannot be opened")


OUTSIDE = [
    "../one/model.safetensors",
    "a/../../x",
    "/etc/passwd",
    "..",
    "C:\\x",
    "\\\\host\\x",
    "..\\x",
    "C:x",
    "a/..",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_opens_nothing_outside_its_folder(copied, name, monkeypatch):
    folder = copied("many")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][KEY] = name
    (folder / INDEX).write_text(json.dumps(index))
    opened = []
    real = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **kw: (opened.append(self.name), real(self, **kw))[1])
    refused(folder, f"{INDEX} lists '0.weight' in .* not inside the checkpoint's folder")
    assert not [n for n in opened if n.endswith((".safetensors", "passwd", "x"))]


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda m: [1], f"{INDEX} is a list, expected a JSON object"),
        (lambda m: {}, "not an index of shards: its weight_map is null"),
        (lambda m: {"weight_map": []}, "its weight_map is a list"),
        (lambda m: {"weight_map": {}}, "missing from"),
        (lambda m: {"weight_map": {**m, KEY: 5}}, "lists '0.weight' in 5, expected the name of a file"),
        (lambda m: {"weight_map": {**m, KEY: ["a"]}}, "expected the name of a file"),
        (lambda m: {"weight_map": {**m, KEY: None}}, "expected the name of a file"),
        (lambda m: {"weight_map": {**m, KEY: ""}}, "expected the name of a file"),
        (lambda m: {"weight_map": {**m, KEY: " "}}, "expected the name of a file"),
        (lambda m: {"weight_map": {**m, KEY: "a\0"}}, "expected the name of a file"),
        (lambda m: {"weight_map": {**m, KEY: "\ud800"}}, "expected the name of a file"),
        (lambda m: {"weight_map": {**m, KEY: "."}}, "which is a folder"),
        (lambda m: {"weight_map": {**m, KEY: "a" * 5000}}, "too long for the name of a file"),
        (lambda m: {"weight_map": {**m, KEY: "é" * 200}}, "too long for the name of a file"),
        (lambda m: {"weight_map": {**m, KEY: "a/" * 900 + "b"}}, "too long for the name of a file"),
        (
            lambda m: {"weight_map": {**m, "1.bias": m[KEY]}},
            "'1.bias' is listed .* but is in",
        ),
        (lambda m: {"weight_map": {**m, "no": m[KEY]}}, "'no' is listed .* that file does not have it"),
        (lambda m: b'{"weight_map": {"a": "x", "a": "y"}}', "names 'a' twice"),
        (lambda m: DEEP.encode(), "nested too deeply"),
        (lambda m: b"\xff\xfe", "not JSON in UTF-8"),
        (lambda m: b"", "not JSON in UTF-8"),
    ],
)
def test_indices_of_the_wrong_shape(copied, change, match):
    folder = copied("many")
    made = change(json.loads((folder / INDEX).read_text())["weight_map"])
    (folder / INDEX).write_bytes(made if isinstance(made, bytes) else json.dumps(made).encode())
    refused(folder, match)
    refused(folder / INDEX, match)


@pytest.mark.parametrize("streamer", READERS)
@pytest.mark.parametrize("prefix", ["", "./", "part/", "./part//deep/./"])
def test_shards_below_the_folder_are_served(copied, prefix, streamer):
    folder = copied("many")
    index = json.loads((folder / INDEX).read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 1
    (folder / prefix).mkdir(parents=True, exist_ok=True)
    for shard in shards:
        os.replace(folder / shard, folder / prefix / shard)
    index["weight_map"] = {k: prefix + v for k, v in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))
    report = load_checkpoint(network(), folder, streamer=streamer)
    assert report.quantised == ("0", "1")


def test_links_in_the_folder_are_followed(copied, tmp_path):
    """A hub's cache holds links to its store."""
    folder = copied("one")
    store = tmp_path / "store"
    os.replace(folder / FILE, store)
    (folder / FILE).symlink_to("../store")
    assert load_checkpoint(network(), folder).quantised == ("0", "1")


MIXED = b'{"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"0": %s}}}'
PACKED = b'{"quantization": {"quant_method": "compressed-tensors", %s}}'
CONFIGS = [
    (b"[1]", f"{CONFIG} is a list"), (DEEP.encode(), "nested too deeply"), (b"\xff", "not JSON in UTF-8"),
    (b'{"quantization": []}', "quantization of hf_quant_config.json is a list, expected an object"),
    (b'{"quantization": {"quant_algo": "FP8"}}', "quant_algo of hf_quant_config.json is 'FP8'; served are NVFP4"),
    (b'{"quantization": {"quant_algo": ["NVFP4"]}}', "quant_algo of hf_quant_config.json is a list"),
    (b'{"quantization": {"quant_algo": "NVFP4", "group_size": 32}}', "group_size of .* is 32; NVFP4 has blocks of 16"),
    (b'{"quantization": {"group_size": "16"}}', "group_size of .* is '16'"),
    (b'{"quantization": {"group_size": true}}', "group_size of .* is True"),
    (b'{"quantization": {"kv_cache_quant_algo": "FP8"}}', "kv_cache_quant_algo of .* is 'FP8'"),
    (b'{"quantization": {"exclude_modules": "0"}}', "exclude_modules of .* is a text, expected a list"),
    (b'{"quantization": {"exclude_modules": [0]}}', "expected a list of texts"),
    (b'{"quantization": {"exclude_modules": ["1", "0*"]}}', "is quantised, but hf_quant_config.json excludes '0'"),
    (b'{"quantization": {"ignore": ["re:[01]$"]}}', "excludes '0'"),
    (b'{"quantization": {"quant_method": "gptq"}}', "quant_method of .* is 'gptq'"),
    (b'{"quantization": {"quant_method": 5}}', "quant_method of .* is a number, expected a text"),
    (b'{"quantization": {"quant_type": "INT8"}}', "quant_type of .* is 'INT8'"),
    (b'{"quantization": {"swap_weight_nibbles": 1}}', "swap_weight_nibbles of .* is a number"),
    (b'{"quantization": {"checkpoint_weight_scale_layout": "rows"}}', "expected linear or swizzled"),
    (b'{"quantization": {"checkpoint_weight_scale_layout": "swizzled"}}', "not that of swizzled scales, as hf_quant"),
    (MIXED % b'{"quant_algo": "FP8"}', "for '0' is 'FP8'"),
    (MIXED % b"5", "has a number for '0'"),
    (PACKED % b'"format": "int-quantized"', "format of .* 'int-quantized'"),
    (PACKED % b'"config_groups": {"g": 5}', "has no weights for 'g'"),
    (PACKED % b'"config_groups": {"g": {"weights": {"num_bits": 8}}}', "weights of 8 bits"),
]  # fmt: skip


@pytest.mark.parametrize("raw, match", CONFIGS)
def test_configs_are_looked_at(copied, raw, match):
    folder = copied("one")
    (folder / CONFIG).write_bytes(raw)
    refused(folder, match)


LAYER = {"quant_algo": "NVFP4", "group_size": 16}
SERVED = [
    None, {}, {"quant_algo": None, "group_size": None},
    {"quant_algo": "NVFP4_AWQ", "group_size": 16, "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]},
    {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"0": LAYER, "1": LAYER}},
    {"checkpoint_weight_scale_layout": "linear", "swap_weight_nibbles": False, "ignore": ["re:(", "x*"]},
    {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {"g": {"weights": {}}}},
]  # fmt: skip


@pytest.mark.parametrize("config", SERVED)
def test_configs_of_what_is_served_load(copied, config):
    folder = copied("one")
    (folder / CONFIG).write_text(json.dumps({"quantization": config}))
    assert load_checkpoint(network(), folder).quantised == ("0", "1")


def test_a_quantised_cache_is_accepted_by_name(copied):
    folder = copied("one")
    (folder / CONFIG).write_text('{"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}}')
    assert load_checkpoint(network(), folder, ignore=["kv_cache_quant_algo"]).quantised == ("0", "1")


@pytest.mark.parametrize("streamer", READERS)
def test_tensors_without_elements_and_without_dimensions_come_from_both_readers(tmp_path, streamer):
    from safetensors.torch import save_file

    made = {
        "none": torch.zeros(0, 3), "one": torch.tensor(2.5), "flag": torch.tensor([True, False]),
        "scale": torch.ones(3).to(torch.float8_e4m3fn), "empty.scale": torch.zeros(2, 0).to(torch.float8_e4m3fn),
    }  # fmt: skip
    save_file(made, tmp_path / FILE)
    contents = open_checkpoint(tmp_path)
    found = dict(read_tensors(contents, set(contents.entries), streamer))
    assert found.keys() == made.keys()
    for key, value in made.items():
        assert found[key].dtype is value.dtype and found[key].shape == value.shape
        assert torch.equal(found[key].float(), value.float())


def test_messages_stay_short_and_printable(tmp_path):
    assert shown("a\nb\0\ud800") == "'a\\nb\\x00\\ud800'" and len(shown("x" * 10**6)) < 120
    write(tmp_path / FILE, {"k" * 10**5: {"dtype": "x" * 10**5, "shape": [], "data_offsets": [0, 0]}}, b"")
    with pytest.raises(CheckpointError) as found:
        read_header(tmp_path / FILE)
    assert len(str(found.value)) < 400
