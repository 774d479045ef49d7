"""Configuration files: presets, YAML and JSON alike, lookup, and errors with file, line and key."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.settings import Scope, Settings, load_settings, settle
from sgl_kernels.core.settings.file import SUFFIXES, find_file, load_file, shipped_configs
from sgl_kernels.core.settings.file_schema import file_rows, json_schema, schema

PRESETS = sorted(shipped_configs().glob("*.yaml"))

WHOLE = {
    "version": 1,
    "default": {"strict": True, "deny": ["xformers"]},
    "attention": ["fa3", "sdpa"],
    "norm": {"backends": "triton", "allow_lossy": True},
    "ops": {"rms_norm": ["cpu"], "attention_varlen": {"backends": ["fa2"]}},
    "rules": [
        {"op": "attention", "role": "cross", "layer": "blocks.*", "shape": "short", "backends": ["flex"]}
    ],
    "options": {"flash3": {"num_splits": 2, "nested": {"a": [1, 2]}}},
    "trace": {"level": 3, "include": ["attention/*"]},
    "cache_dit": {
        "fn": 2,
        "rdt": 0.5,
        "scm_compute_bins": [8, 3],
        "scm_cache_bins": [1],
        "secondary": {"mc": 1},
    },
    "cloud": {"type": "s3", "bucket_name": "b"},
    "target_device": "CUDA",
    "check": False,
}


def write(tmp_path: Path, text: str | bytes, name: str = "cfg.yaml") -> str:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def error_of(path: str, known: Any = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load_file(path, known)
    return str(caught.value).replace(path, "F")


def test_there_are_six_presets() -> None:
    assert [p.stem for p in PRESETS] == ["apple", "ascend", "cpu", "default", "h200", "mi300x"]


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_presets_load_from_anywhere(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    by_name = load_settings({"SGLANG_DIFFUSION_ATTENTION_CONFIG": path.stem}, known_backends=())
    assert by_name.attention_config == str(path)
    if path.stem != "default":
        assert by_name.policy("attention").prefer[-1] == "torch", "every preset ends where all calls can"
        assert by_name.target_device is not None


def test_the_default_file_holds_every_key_with_its_default() -> None:
    path = shipped_configs() / "default.yaml"
    assert settle(("file", load_file(str(path)))) == Settings()
    data = yaml.safe_load(path.read_text())
    assert set(data) == set(schema().model_fields)
    for row in file_rows():
        value: Any = data
        for part in row.key.split("."):
            value = value[part]  # KeyError: the file lacks the key
        shown = tuple(value) if isinstance(value, list) else value
        assert shown == row.default, row.key


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    files = [
        write(tmp_path, yaml.safe_dump(WHOLE), "a.yaml"),
        write(tmp_path, yaml.safe_dump(WHOLE, default_flow_style=True), "b.yml"),
        write(tmp_path, json.dumps(WHOLE), "c.json"),
        write(tmp_path, "\ufeff" + json.dumps(WHOLE, indent="\t").replace("\n", "\r\n"), "d.JSON"),
    ]
    first, *others = [settle(("file", load_file(file))) for file in files]
    assert all(other == first for other in others)
    assert first.policy("attention").prefer == ("fa3", "torch")
    assert first.policy("attention").strict and first.policy("rms_norm").deny == {"xformers"}
    assert first.policy("rms_norm").prefer == ("cpu",) and first.policy("rms_norm").allow_lossy
    assert first.policy("attention_lse", Scope("cross", "blocks.1"), "short").prefer == ("flex",)
    assert first.options_for("fa3") == {"num_splits": 2, "nested": (("a", (1, 2)),)}
    assert (first.trace.level, first.trace.include) == (3, ("attention/*",))
    assert (first.cache_dit.secondary.fn, first.cache_dit.secondary.mc) == (2, 1)
    assert (first.target_device, first.cloud.bucket_name) == ("cuda", "b")


def test_origins_name_file_and_line(tmp_path: Path) -> None:
    text = (
        "# head\nattention:\n  - fa3\nrules:\n  - backends: flex\n\n  - backends: fa2\ncache_dit:\n  fn: 2\n"
    )
    path = write(tmp_path, text)
    settings = settle(("configuration file", load_file(path)))
    assert settings.origin("attention.backends") == f"file {path}:2"
    assert settings.origin("cache_dit.fn") == f"file {path}:9"
    assert [rule.origin for rule in settings.rules[::3]] == [f"file {path}:5", f"file {path}:7"]
    lines = load_file(write(tmp_path, '{\n"check": true,\n"trace": {\n"level": 1}}', "x.json")).where
    assert [where[-1] for where in lines.values()] == ["4", "2"] or set(lines) == {"check", "trace.level"}


def test_json_may_hold_what_yaml_cannot_print(tmp_path: Path) -> None:
    path = write(tmp_path, '{"options": {"fa3": {"a": "\x7f\\u0000\U0001f600",\n "b":\t1}}}', "x.json")
    assert load_file(path) == {"options.fa3": {"a": "\x7f\x00\U0001f600", "b": 1}}


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    for name, text in (("a.yaml", ""), ("b.yaml", "# only a comment\n"), ("c.json", " \n")):
        assert load_file(write(tmp_path, text, name)) == {}
    assert load_file(write(tmp_path, "version: 1\nattention: null\nops: {}\noptions: {fa3: {}}\n")) == {
        "options.fa3": {}
    }


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    text = "norm: &base {backends: [triton], strict: true}\nrope: *base\nops:\n  rms_norm: {<<: *base, strict: false}\n"
    settings = settle(("file", load_file(write(tmp_path, text))))
    assert settings.policy("apply_rope") == settings.policy("layer_norm")
    assert settings.policy("rms_norm").prefer == ("triton",) and not settings.policy("rms_norm").strict


def test_third_party_names_are_known(tmp_path: Path) -> None:
    path = write(tmp_path, "attention: [acme]\noptions: {acme: {x: 1}}\nrules: [{backends: [acme]}]\n")
    settings = settle(("file", load_file(path, ["acme"])), known_backends=["acme"])
    assert settings.policy("attention").prefer == ("acme",) and settings.options_for("acme") == {"x": 1}
    assert "unknown backend 'acme'" in error_of(path)


SYNTAX = [
    ("cfg.yaml", "a: [1, 2\nb: 3\n", r"F:2:2: not valid YAML: .*expected ',' or ']'"),
    ("cfg.yaml", "attention:\n\t- fa3\n", r"F:2:1: not valid YAML: .*cannot start any token"),
    ("cfg.yaml", "attention: 'fa3\n", r"F:2:1: not valid YAML: .*quoted scalar"),
    ("cfg.yaml", "a: *nothing\n", r"F:1:4: not valid YAML: .*undefined alias"),
    ("cfg.yaml", "a: 1\n---\nb: 2\n", r"F:2:1: not valid YAML: .*single document"),
    (
        "cfg.yaml",
        "a: !!python/object:os.system x\n",
        r"F:1:4: not valid YAML: .*could not determine a constructor",
    ),
    ("cfg.yaml", "a: \x00\n", r"F: not valid YAML: .*special characters"),
    ("cfg.yaml", "check: true\nx: 1\ncheck: false\n", r"F:3: key 'check' is given twice, first on line 1"),
    ("cfg.yaml", "trace:\n  level: 1\n  level: 1\n", r"F:3: key 'level' is given twice, first on line 2"),
    ("cfg.yaml", "attention: fa3\non: 1\n", r"F:2: key 'on' is not text in YAML; put it in quotes"),
    ("cfg.yaml", "? [a, b]\n: 1\n", r"F:1: key 'a list or mapping' is not text"),
    ("cfg.yaml", "a: 2026-13-45\n", r"F: not valid YAML: month must be"),
    ("cfg.yaml", b"a: 1\nb: \xff\n", r"F:2: not UTF-8 text \(byte 8\)"),
    ("cfg.yaml", "[" * 3000, r"F(:\d+)*: (nested too deeply|not valid YAML)"),
    ("cfg.yaml", "a: &a [*a]\n", r"F: (more than 20000 values|nested too deeply)"),
    ("cfg.yaml", "- fa3\n", r"F:1: holds a list; expected a mapping"),
    ("cfg.yaml", "fa3", r"F:1: holds 'fa3'; expected a mapping"),
    ("cfg.json", '{"a": 1,}', r"F:1:\d: not valid JSON"),
    ("cfg.json", "{\n  # comment\n}", r"F:2:3: not valid JSON: Expecting property name"),
    ("cfg.json", "attention: fa3\n", r"F:1:1: not valid JSON"),
    ("cfg.json", '{"cache_dit": {"rdt": NaN}}', r"F: not valid JSON: NaN is not a JSON number"),
    ("cfg.json", '{"check": true,\n "check": false}', r"F:2: key 'check' is given twice, first on line 1"),
    ("cfg.json", "[" * 100_000, r"F(:\d+)*: (nested too deeply|not valid JSON)"),
    ("cfg.json", "3", r"F:1: holds 3; expected a mapping"),
]


@pytest.mark.parametrize("name, text, message", SYNTAX, ids=[str(i) for i in range(len(SYNTAX))])
def test_broken_syntax_names_the_line(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    found = error_of(write(tmp_path, text, name))
    assert re.match(message, found), found


def test_aliases_that_unfold_without_end_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "more than 20000 values, counting each use of an alias" in error_of(
        write(tmp_path, "\n".join(lines))
    )


CONTENT = [
    ("version: 2", "F:1: version is 2; expected 1"),
    ("version: '1'", "F:1: version is '1'; expected 1"),
    ("\natention: fa3", "F:2: unknown key 'atention'; did you mean 'attention'? keys here: version, default"),
    ("attention: {backend: fa3}", "F:1: unknown key 'attention.backend'; did you mean 'backends'? keys here"),
    (
        "attention: 3",
        "F:1: attention is 3; expected a backend name, a list of them, or a mapping with backends",
    ),
    ("attention: [fa3, 3]", "F:1: attention.backends is ['fa3', 3]; expected a backend name or a comma list"),
    (
        "attention: [fa3, tritn]",
        "F:1: attention.backends is ['fa3', 'tritn']: unknown backend 'tritn'; did you",
    ),
    ("norm:\n  strict: ja", "F:2: norm.strict is 'ja'; expected one of 1, true, yes"),
    ("norm:\n  deny: {a: 1}", "F:2: norm.deny is {'a': 1}; expected a backend name"),
    ("ops:\n  rmsnorm: [cpu]", "F:2: ops: unknown op 'rmsnorm'; did you mean 'rms_norm'?"),
    ("ops:\n  rms_norm: 1", "F:2: ops.rms_norm is 1; expected a backend name, a list"),
    ("ops: [cpu]", "F:1: ops is a list; expected a mapping"),
    ("rules: {op: attention}", "F:1: rules is a mapping; expected a list"),
    ("rules: [fa3]", "F:1: rules[0] is 'fa3'; expected a mapping"),
    (
        "rules:\n- op: rope\n  role: crss\n  backends: fa3",
        "F:3: rules[0].role is 'crss'; expected one of self, cross; did",
    ),
    (
        "rules:\n- shape: huge\n  backends: fa3",
        "F:2: rules[0].shape is 'huge'; expected one of decode, short, medium",
    ),
    (
        "rules:\n- backends: fa3\n- layer: 3\n  backends: fa3",
        "F:3: rules[1].layer is 3; expected a valid string",
    ),
    ("rules:\n- role: self", "F:2: rules[0] has no 'backends'"),
    ("rules:\n- op: nrm\n  backends: fa3", "F:2: rules[0]: unknown op 'nrm'; did you mean 'norm'?"),
    (
        "rules:\n- opp: norm\n  backends: fa3",
        "F:2: unknown key 'rules[0].opp'; did you mean 'op'? keys here: op, role",
    ),
    ("options: {fa: {x: 1}}", "F:1: options: options belong to one backend, 'fa' stands for fa4, fa3, fa2"),
    ("options:\n  sage: 1", "F:2: options.sage is 1; expected a mapping"),
    ("options: {nobody: {}}", "F:1: options: unknown backend 'nobody'"),
    ("trace:\n  level: 30", "F:2: trace.level is 30; expected a whole number from 0 to 10"),
    ("trace: 3", "F:1: trace is 3; expected a mapping"),
    ("trace: {include: 3}", "F:1: trace.include is 3; expected a comma list of wildcards"),
    (
        "cache_dit:\n  secondary:\n    fn: none",
        "F:3: cache_dit.secondary.fn is 'none'; expected a whole number",
    ),
    ("cache_dit: {scm_preset: turbo}", "F:1: cache_dit.scm_preset is 'turbo'; expected one of none, slow"),
    ("cloud: {secret_access_key: x}", "F:1: unknown key 'cloud.secret_access_key'"),
    ("target_device: cude", "F:1: target_device is 'cude'; expected one of cuda, rocm"),
    (
        "runtime: {torch_profiler_dir: traces}",
        "F:1: runtime.torch_profiler_dir is 'traces'; expected an absolute path",
    ),
]


@pytest.mark.parametrize("text, message", CONTENT, ids=[text.replace("\n", " ") for text, _ in CONTENT])
def test_broken_content_names_file_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    found = error_of(write(tmp_path, text + "\n"))
    assert found.startswith(message), found
    assert "\n" not in found


def test_everything_wrong_is_reported_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "trace: {level: x}\natention: fa3\nnorm: {strict: ja}\n"
    first, *problems = error_of(write(tmp_path, text)).splitlines()
    assert first == "F: 3 problems"
    assert [problem[:6] for problem in problems] == ["  F:1:", "  F:2:", "  F:3:"]


def test_a_rule_that_only_settle_can_judge_still_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, "rules:\n  - {op: norm, shape: long, backends: triton}\n")
    with pytest.raises(ConfigError, match=re.escape(f"{path}:2: rules[0].shape is 'long'")):
        load_settings({"SGLANG_DIFFUSION_ATTENTION_CONFIG": path})


def test_what_is_not_a_readable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "dir.yaml"
    folder.mkdir()
    with pytest.raises(ConfigError, match="is a directory; expected a YAML or JSON file"):
        load_settings({"SGLANG_DIFFUSION_ATTENTION_CONFIG": str(folder)})
    with pytest.raises(ConfigError, match=r"ends in .yaml, .yml, .json"):
        load_settings({"SGLANG_DIFFUSION_ATTENTION_CONFIG": write(tmp_path, "x = 1", "cfg.toml")})
    big = write(tmp_path, "#" * (1 << 20) + "\n", "big.yaml")
    with pytest.raises(ConfigError, match="larger than 1048576 bytes"):
        load_file(big)

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ConfigError, match=r"cfg.toml.yaml cannot be read: Permission denied"):
        load_file(str(tmp_path / "cfg.toml.yaml"))


@pytest.mark.parametrize("path", ["/", ".", "./"])
def test_a_path_without_a_name_is_a_directory(path: str) -> None:
    with pytest.raises(ConfigError, match="a directory; expected a YAML or JSON file"):
        find_file(path, "x")


def test_a_name_that_no_file_system_takes_names_no_file() -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        find_file("x" * 5000, "x")


def test_relative_paths_are_looked_up_in_three_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, work = tmp_path / "root", tmp_path / "work"
    root.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    assert find_file("cpu.yaml", str(root)) == str(shipped_configs() / "cpu.yaml")
    (root / "cpu.yaml").write_text("check: true\n")
    assert find_file("cpu", str(root)) == str(root / "cpu.yaml")
    (work / "cpu.json").write_text("{}")
    assert find_file("cpu", str(root)) == "cpu.json"
    assert find_file("./cpu.yaml", str(root)) == str(root / "cpu.yaml")
    settings = load_settings(
        {"SGLANG_DIFFUSION_CONFIG_ROOT": str(root), "SGLANG_DIFFUSION_ATTENTION_CONFIG": "cpu.yaml"}
    )
    assert settings.check and settings.attention_config == str(root / "cpu.yaml")
    flagged = load_settings({}, {"attention_config": "cpu.yaml", "config_root": str(root)})
    assert flagged.check


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_settings(
            {"SGLANG_DIFFUSION_ATTENTION_CONFIG": "h20.yaml", "SGLANG_DIFFUSION_CONFIG_ROOT": "/nowhere"}
        )
    message = str(caught.value)
    assert message.startswith("SGLANG_DIFFUSION_ATTENTION_CONFIG is 'h20.yaml', and there is no such file")
    for part in (str(tmp_path), "/nowhere", str(shipped_configs().resolve()), "did you mean 'h200.yaml'?"):
        assert part in message
    with pytest.raises(ConfigError, match="did you mean 'cpu'"):
        find_file("cpus", "x")
    with pytest.raises(ConfigError, match=r"is '/no/such.yaml', and there is no such file$"):
        find_file("/no/such.yaml", "x")


def test_the_schema_is_offered_to_editors() -> None:
    found = json_schema()
    assert found["additionalProperties"] is False
    assert set(found["properties"]) == set(schema().model_fields)
    level = found["$defs"]["Trace"]["properties"]["level"]
    assert level["anyOf"][0] == {"type": "integer", "minimum": 0, "maximum": 10}
    json.dumps(found)


def test_suffixes() -> None:
    assert SUFFIXES == (".yaml", ".yml", ".json")
