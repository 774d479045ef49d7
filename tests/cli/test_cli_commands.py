"""Every command does its work, prints JSON when asked, and exits with the code that says how it went."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from sgl_kernels.cli import app
from sgl_kernels.core import registry as registry_module
from sgl_kernels.core.selection.implementation import Implementation

runner = CliRunner()


def run(*arguments: str, code: int = 0, **more):
    result = runner.invoke(app, list(arguments), **more)
    assert result.exit_code == code, f"{result.output}\n{result.stderr}\n{result.exception!r}"
    return result


def run_json(*arguments: str, code: int = 0):
    return json.loads(run(*arguments, "--json", code=code).stdout)


@pytest.fixture
def wrong_backend(monkeypatch):
    """A backend of gelu_tanh that answers wrongly, in a copy of the registry's tables."""
    registry = registry_module.registry
    registry.backends()
    monkeypatch.setattr(
        registry, "_implementations", {k: dict(v) for k, v in registry._implementations.items()}
    )
    monkeypatch.setattr(registry, "_sources", dict(registry._sources))
    implementation = Implementation(op="gelu_tanh", backend="wrong", load=lambda config: lambda x: x * 0.5)
    registry.add([implementation], "test")


def test_help_names_every_command():
    text = run("--help").stdout
    for name in (
        "doctor",
        "list",
        "explain",
        "env",
        "config",
        "parity",
        "bench",
    ):
        assert name in text


def test_version():
    from sgl_kernels._version import __version__

    assert run("--version").stdout.strip() == f"sgl_kernels {__version__}"


def test_module_runs_as_a_program():
    command = [sys.executable, "-m", "sgl_kernels", "list", "ops", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "attention" in [row["op"] for row in json.loads(done.stdout)["ops"]]


def test_list_shows_ops_backends_and_aliases():
    data = run_json("list")
    assert set(data) == {"ops", "backends", "aliases"}
    assert "torch" in [row["backend"] for row in data["backends"]]
    assert {"name": "sdpa", "means, in order": "torch"} in data["aliases"]
    assert "attention" in run("list", "ops").stdout


def test_list_shows_cases_of_one_op():
    rows = run_json("list", "cases", "--op", "gelu_tanh")["cases"]
    assert rows and {row["op"] for row in rows} == {"gelu_tanh"}


def test_explain_answers_for_a_machine_that_is_not_here():
    data = run_json(
        "explain",
        "attention",
        "--shape",
        "1,4096,24,128",
        "--device",
        "cuda:sm90",
        "--package",
        "flash-attn=2.8.3",
    )
    assert data["device"] == {"platform": "cuda", "arch": "sm90", "name": ""}
    assert data["facts"]["sq"] == 4096 and data["facts"]["head_dim"] == 128
    verdicts = {c["backend"]: c["reason"] for c in data["candidates"]}
    assert verdicts["fa2"] is None and verdicts["fa3"] == "package"


def test_explain_pretends_that_a_package_is_absent():
    arguments = (
        "explain",
        "attention",
        "--shape",
        "1,64,4,64",
        "--device",
        "cuda:sm90",
        "--package",
        "triton=",
    )
    verdicts = {c["backend"]: c["reason"] for c in run_json(*arguments)["candidates"]}
    assert verdicts.get("triton", "package") == "package"


@pytest.mark.parametrize("mask, fact", [("bool", "per_query"), ("float", "full"), ("padding", "key_padding")])
def test_explain_builds_masks(mask, fact):
    data = run_json("explain", "attention", "--shape", "2,77,8,64", "--mask", mask)
    assert data["facts"]["mask_kind"] == fact


def test_explain_takes_every_feature_of_attention():
    data = run_json(
        "explain", "attention", "--shape", "1,64,8,64", "--kv-shape", "1,80,2,64", "--causal", "--window", "16,0",
        "--set", "softcap=30", "--set", "scale=0.5", "--grad", "--dtype", "fp32", "--device", "cpu:avx2",
    )  # fmt: skip
    facts = data["facts"]
    assert facts["kv_heads"] == 2 and facts["sk"] == 80 and facts["causal"] == "bottom_right"
    assert facts["window"] == [16, 0] and facts["softcap"] and facts["has_scale"] and facts["needs_grad"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("rms_norm", "--shape", "4096,3072"),
        ("layer_norm", "--shape", "2,77,768"),
        ("group_norm", "--shape", "1,128,64,64", "--set", "activation=silu"),
        ("norm_scale_shift", "--shape", "1,4096,3072", "--params", "frame", "--set", "norm=rms"),
        ("residual_gate_norm_scale_shift", "--shape", "1,4096,3072", "--params", "token"),
        ("apply_rope", "--shape", "1,4096,24,128", "--set", "interleaved=true"),
        ("qk_norm_rope", "--shape", "1,4096,24,128", "--kv-shape", "1,4096,8,128"),
        ("scale_shift", "--shape", "1,64,96", "--params", "vector"),
        ("gate_residual", "--shape", "1,64,96"),
        ("silu_mul", "--shape", "64,192"),
        ("gelu_tanh", "--shape", "64,192"),
        ("gelu_mul", "--shape", "64,192", "--tensor", "up=64x192"),
        ("attention_lse", "--shape", "1,64,4,64"),
        ("attention_varlen", "--shape", "600,8,64", "--lengths", "512,77,11"),
        ("attention", "--case", "gqa"),
        ("attention",),
    ],
    ids=lambda a: "-".join(a[:1]),
)
def test_explain_knows_every_op(arguments):
    data = run_json("explain", *arguments)
    assert data["op"] == arguments[0] and data["chosen"]


def test_explain_prints_a_reason_for_each_backend():
    text = run("explain", "attention", "--shape", "1,4096,24,128", "--device", "rocm:gfx942").stdout
    assert "→ " in text and "rocm:gfx942" in text and "how to change it" in text


def test_explain_fails_when_nothing_serves_the_call():
    result = run(
        "explain", "attention", "--shape", "1,64,4,64", "--device", "cpu", "--backend", "fa3", code=1
    )
    assert "No backend serves this call" in result.stdout


def test_env_lists_every_variable_with_its_origin():
    from sgl_kernels.core.settings.variables import BY_NAME

    rows = run_json("env")
    assert {row["name"] for row in rows} == set(BY_NAME)
    result = run("env", "--set", "--json", env={"SGLANG_DIFFUSION_ATTENTION_BACKEND": "fa,sdpa"})
    (row,) = json.loads(result.stdout)
    assert row["value"] == "fa4,fa3,fa2,torch" and "environment" in row["origin"]
    assert "not yet" in run("env", "--section", "cloud").stdout


def test_config_check_says_line_and_key(tmp_path):
    good = tmp_path / "good.yaml"
    good.write_text("attention: [fa3, torch]\n")
    assert "nothing wrong" in run("config", "check", str(good)).stdout
    bad = tmp_path / "bad.yaml"
    bad.write_text("attention: [fa3]\nnrom: [triton]\n")
    assert f"{bad}:2" in run("config", "check", str(bad), code=1).stderr
    data = run_json("config", "check", str(bad), code=1)
    assert not data["valid"] and "nrom" in data["problem"]


def test_config_show_says_where_a_value_was_set(tmp_path):
    file = tmp_path / "site.yaml"
    file.write_text("attention: [torch]\nlogging_level: ERROR\n")
    env = {"SGLANG_DIFFUSION_ATTENTION_CONFIG": str(file)}
    rows = json.loads(run("config", "show", "--origin", "--set", "--json", env=env).stdout)
    by_key = {row["key"]: row for row in rows}
    assert by_key["attention.backends"]["value"] == ["torch"]
    assert by_key["attention.backends"]["origin"] == f"file {file}:1"
    assert by_key["logging_level"]["value"] == "ERROR"
    assert str(file) in run("config", "show", "--origin", env={**env, "COLUMNS": "300"}).stdout


def test_parity_prints_the_matrix_in_four_forms(tmp_path):
    arguments = ("parity", "--op", "gelu_tanh", "--backend", "torch", "--tag", "smoke", "--seed", "1")
    assert "passed" in run(*arguments).stdout
    data = run_json(*arguments)
    assert data["counts"]["fail"] == 0 and data["counts"]["pass"] == len(data["cells"])
    assert run(*arguments, "--markdown").stdout.startswith("| op | torch |")
    page = tmp_path / "parity.html"
    run(*arguments, "--html", str(page))
    text = page.read_text()
    assert "Every cell" in text and "http" not in text and "<script" not in text


def test_parity_exits_1_when_a_cell_fails(wrong_backend):
    result = run("parity", "--op", "gelu_tanh", "--backend", "wrong", "--tag", "smoke", code=1)
    assert "FAILED" in result.stdout and "relative L2" in result.stdout


def test_parity_exits_1_when_a_required_backend_is_skipped():
    arguments = ("parity", "--op", "attention", "--backend", "fa3,torch", "--tag", "smoke", "--dtype", "bf16")
    run(*arguments)
    result = run(*arguments, "--require", "fa3", code=1)
    assert "--require fa3" in result.stderr and "platform" in result.stderr


def test_doctor_prints_devices_backends_and_fixes():
    data = run_json("doctor", "--no-probe", "--device", "cuda:sm90")
    assert data["target"] == "cuda:sm90"
    assert {f["name"] for f in data["backends"]} >= {"torch"}
    assert "torch" in run("doctor", "--no-probe", "--device", "cpu:avx512").stdout


def test_doctor_exits_1_for_settings_that_cannot_be_used():
    env = {"SGLANG_DIFFUSION_ATTENTION_BACKEND": "fa99"}
    result = run("doctor", "--no-probe", "--device", "cpu", code=1, env=env)
    assert "fa99" in result.stdout


def test_completion_is_offered():
    assert "--install-completion" in run("--help").stdout
