"""Checkpoints whose headers, indices, configs and bytes are anything: loaded, or a CheckpointError."""

from __future__ import annotations

import json
import shutil

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sgl_kernels.integrations.checkpoints import CheckpointError, load_checkpoint
from tests.integrations.test_checkpoints_damage import CONFIG, FILE, INDEX, network, source, split, write

__all__ = ["source"]  # the fixture

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(), max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)
PARTS = (
    "quant_algo", "group_size", "exclude_modules", "ignore", "quant_method", "config_groups", "format", "quant_type",
    "kv_cache_quant_algo", "quantized_layers", "swap_weight_nibbles", "checkpoint_weight_scale_layout",
)  # fmt: skip
FUZZ = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def outcome(folder):
    """Loaded, or refused with the one error; the model is whole either way."""
    model = network()
    try:
        load_checkpoint(model, folder, streamer=False)
    except CheckpointError as error:
        assert [type(m) for m in model] == [nn.Linear, nn.Linear] and str(error).isprintable()


@FUZZ
@given(data=st.data())
def test_any_json_in_a_header(source, tmp_path_factory, data):
    """Values of a true header exchanged for any JSON, at any depth."""
    folder = tmp_path_factory.mktemp("header")
    header, payload = split(source / "one" / FILE)
    for _ in range(data.draw(st.integers(1, 2))):
        place, value = header, data.draw(JSON)
        while isinstance(place, dict) and place:
            name = data.draw(st.sampled_from(sorted(place)))
            if not isinstance(place[name], dict) or data.draw(st.booleans()):
                place[name] = value
                break
            place = place[name]
    write(folder / FILE, header, payload)
    outcome(folder)


@FUZZ
@given(data=st.data(), target=st.sampled_from([INDEX, CONFIG, "config.json"]))
def test_any_json_in_an_index_and_a_config(source, tmp_path_factory, data, target):
    folder = tmp_path_factory.mktemp("index") / "x"
    shutil.copytree(source / "many", folder)
    if target == "config.json":
        (folder / CONFIG).unlink()
    if target == INDEX:
        listed = json.loads((folder / INDEX).read_text())["weight_map"]
        listed[data.draw(st.sampled_from(sorted(listed)) | st.text(max_size=5))] = data.draw(
            JSON | st.text(max_size=40)
        )
        value = data.draw(st.just({"weight_map": listed}) | JSON)
    else:
        inner = st.dictionaries(st.sampled_from(PARTS), JSON, max_size=3) | JSON
        outer = "quantization" if target == CONFIG else "quantization_config"
        value = data.draw(st.builds(lambda v: {outer: v}, inner) | JSON)
    (folder / target).write_text(json.dumps(value))
    outcome(folder)


@FUZZ
@given(data=st.data())
def test_any_bytes(source, tmp_path_factory, data):
    """A true file cut, and with bytes of its first part exchanged."""
    folder = tmp_path_factory.mktemp("bytes")
    raw = bytearray((source / "one" / FILE).read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, 900))] = data.draw(st.integers(0, 255))
    (folder / FILE).write_bytes(raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))])
    outcome(folder)
