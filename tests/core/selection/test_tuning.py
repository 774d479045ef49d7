"""Tuning tables: values that merge, load from files, and steer selection."""

from __future__ import annotations

import pytest
import torch

import sgl_kernels
from sgl_kernels.core.device import probe
from sgl_kernels.core.dispatch import Dispatcher, activate
from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.registry import registry
from sgl_kernels.core.selection import tuning
from sgl_kernels.core.selection.packages import installed_version
from sgl_kernels.core.selection.tuning import TuningRecord, TuningTable, tuning_key
from sgl_kernels.core.settings import Settings

CPU = probe(torch.device("cpu")).name


def record(op: str = "rms_norm", key: tuple = (1, "a"), backend: str = "torch", ms: float = 1.0, **kw):
    return TuningRecord(op, key, backend, None, ms, **kw)


def test_a_table_survives_json():
    table = TuningTable("NVIDIA H200", (record(key=("bfloat16", 128, False, None, (3, 4))),))
    assert TuningTable.loads(table.dumps()) == table


@pytest.mark.parametrize(
    "text, named",
    [
        ("", "Expecting value"),
        ("[]", "a list of 'records'"),
        ("{}", "a list of 'records'"),
        ('{"device": "x", "records": 3}', "a list of 'records'"),
        ('{"device": 3, "records": []}', "device is 3"),
        ('{"device": "x", "records": [{}]}', r"records\[0\]\.versions is None"),
        ('{"device": "x", "records": [7]}', r"records\[0\] is 7"),
        ("[" * 100_000, "nested without end|Expecting"),
        *(
            (
                '{"device": "x", "records": [{"op": "a", "key": [1], "backend": "b", "config": null, "median_ms": 1, '
                f'"versions": {{}}, "{field}": {value}}}]}}',
                rf"records\[0\]\.{field}",
            )
            for field, value in (
                ("op", "1"), ("key", '"a"'), ("key", '[{"a": 1}]'), ("backend", '["b"]'), ("config", "3"),
                ("median_ms", '"fast"'), ("median_ms", "NaN"), ("median_ms", "true"), ("versions", "[]"),
            )
        ),
    ],
)  # fmt: skip
def test_what_is_not_a_table_is_refused(text, named):
    with pytest.raises(ValueError, match=named):
        TuningTable.loads(text)


def test_merging_lets_the_right_win_and_refuses_other_devices():
    left = TuningTable("a", (record(ms=1.0), record(key=(2,))))
    right = TuningTable("a", (record(ms=2.0),))
    merged = left | right
    assert len(merged.records) == 2 and merged.records[0].median_ms == 2.0
    with pytest.raises(ValueError, match="cannot be merged"):
        left | TuningTable("b", (record(),))


def test_lengths_share_a_record_up_to_a_power_of_two():
    q = torch.empty(1, 1000, 8, 64, device="meta")
    facts = [sgl_kernels.explain("attention", q[:, :n], q, q).facts for n in (900, 1000, 400)]
    assert tuning_key(facts[0]) == tuning_key(facts[1]) != tuning_key(facts[2])


@pytest.fixture
def x():
    return torch.randn(4, 64)


def _facts(x):
    op = registry.op("rms_norm")
    return op.facts(x, None, 1e-6, 0.0)


def _dispatcher(tmp_path, *paths):
    tuning._load_tables.cache_clear()
    return Dispatcher(Settings(tuning_paths=tuple(map(str, paths)), cache_root=str(tmp_path / "cache")))


def test_a_table_from_the_settings_steers_selection(tmp_path, x):
    table = TuningTable(CPU, (record(key=tuning_key(_facts(x)), ms=0.412),))
    file = tmp_path / "mine.json"
    file.write_text(table.dumps())
    with activate(_dispatcher(tmp_path, file)):
        assert sgl_kernels.explain("rms_norm", x).why == "tuned 0.412 ms"
    with activate(_dispatcher(tmp_path, tmp_path)):
        assert sgl_kernels.explain("rms_norm", x).why == "tuned 0.412 ms"


def test_a_table_under_the_cache_root_is_found_and_an_explicit_one_wins(tmp_path, x):
    own = tuning.user_folder(str(tmp_path / "cache"), CPU)
    own.mkdir(parents=True)
    key = tuning_key(_facts(x))
    (own / "rms_norm.json").write_text(TuningTable(CPU, (record(key=key, ms=1.0),)).dumps())
    with activate(_dispatcher(tmp_path)):
        assert sgl_kernels.explain("rms_norm", x).why == "tuned 1.000 ms"
    file = tmp_path / "explicit.json"
    file.write_text(TuningTable(CPU, (record(key=key, ms=2.0),)).dumps())
    with activate(_dispatcher(tmp_path, file)):
        assert sgl_kernels.explain("rms_norm", x).why == "tuned 2.000 ms"


def test_another_device_and_another_version_are_not_used(tmp_path, x):
    key = tuning_key(_facts(x))
    other = TuningTable("NVIDIA H200", (record(key=key),))
    (tmp_path / "other.json").write_text(other.dumps())
    stale = TuningTable(CPU, (record(key=key, versions=(("torch", "1.0"),)),))
    (tmp_path / "stale.json").write_text(stale.dumps())
    with activate(_dispatcher(tmp_path, tmp_path / "other.json", tmp_path / "stale.json")):
        assert not sgl_kernels.explain("rms_norm", x).why.startswith("tuned")
    fresh = TuningTable(CPU, (record(key=key, versions=(("torch", str(installed_version("torch"))),)),))
    (tmp_path / "fresh.json").write_text(fresh.dumps())
    with activate(_dispatcher(tmp_path, tmp_path / "fresh.json")):
        assert sgl_kernels.explain("rms_norm", x).why.startswith("tuned")


def test_a_missing_path_and_a_broken_file_are_errors_that_name_them(tmp_path, x):
    with (
        activate(_dispatcher(tmp_path, tmp_path / "absent.json")),
        pytest.raises(ConfigError, match=r"absent\.json"),
    ):
        sgl_kernels.rms_norm(x)
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with (
        activate(_dispatcher(tmp_path, broken)),
        pytest.raises(ConfigError, match=r"broken\.json"),
    ):
        sgl_kernels.rms_norm(x)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("{"), "Expecting property name"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "utf-8"),
        (lambda path: (path.mkdir(), (path / "in.json").write_text("[]")), r"in\.json: not a tuning table"),
        (lambda path: path.symlink_to("/dev/zero"), "no ordinary file"),
        (lambda path: path.symlink_to(path), "Too many levels|does not exist"),
    ],
    ids=("missing", "broken", "bytes", "folder", "device", "loop"),
)
def test_a_table_that_cannot_be_used_is_an_error_when_settings_load(make, said, tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    make(path)
    monkeypatch.setenv("SGL_KERNELS_TUNING", str(path))
    with pytest.raises(ConfigError, match=said) as caught:
        sgl_kernels.load_settings()
    assert str(caught.value).startswith(f"SGL_KERNELS_TUNING names '{path}'")
    assert "take it out of SGL_KERNELS_TUNING" in str(caught.value)


def test_a_file_names_its_line_for_a_table_that_is_not_there(tmp_path, monkeypatch):
    file = tmp_path / "site.yaml"
    file.write_text("check: true\ntuning_paths: [/nowhere/table.json]\n")
    monkeypatch.setenv("SGLANG_DIFFUSION_ATTENTION_CONFIG", str(file))
    with pytest.raises(ConfigError, match=r"site\.yaml:2: tuning_paths names '/nowhere/table\.json'"):
        sgl_kernels.load_settings()


def test_a_damaged_file_under_the_cache_root_is_passed_over_with_one_warning(tmp_path, x, caplog):
    own = tuning.user_folder(str(tmp_path / "cache"), CPU)
    own.mkdir(parents=True)
    (own / "damaged.json").write_text("{")
    (own / "good.json").write_text(TuningTable(CPU, (record(key=tuning_key(_facts(x)), ms=3.0),)).dumps())
    with activate(_dispatcher(tmp_path)), caplog.at_level("WARNING", "sgl_kernels"):
        assert sgl_kernels.explain("rms_norm", x).why == "tuned 3.000 ms"
    (warning,) = [r.getMessage() for r in caplog.records]
    assert "damaged.json" in warning and "passed over" in warning


def test_use_takes_a_table(x):
    table = TuningTable(CPU, (record(key=tuning_key(_facts(x)), ms=0.5),))
    with sgl_kernels.use(tuning=table):
        assert sgl_kernels.explain("rms_norm", x).why == "tuned 0.500 ms"


def test_options_reach_the_backend_and_unknown_ones_are_errors(x):
    from sgl_kernels.core.registry import Registry
    from sgl_kernels.core.selection.implementation import Implementation

    seen = []

    def load(config):
        seen.append(config)
        return lambda x, weight, eps, weight_offset: x

    fresh = Registry()
    for op in registry.ops().values():
        fresh.define(op)
    fresh.add(
        [Implementation(op="rms_norm", backend="torch", load=load, options={"tile": "rows a tile"})],
        "test",
    )
    with activate(Dispatcher(Settings(options=(("torch", (("tile", 4),)),)), source=fresh)):
        sgl_kernels.rms_norm(x)
    assert seen == [(("tile", 4),)]
    wrong = Settings(options=(("torch", (("tiel", 4),)),))
    with (
        activate(Dispatcher(wrong, source=fresh)),
        pytest.raises(ConfigError, match=r"'tiel' is unknown; accepted: tile"),
    ):
        sgl_kernels.rms_norm(x)
