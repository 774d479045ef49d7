"""What users get wrong is answered by one message that names it and says what to do; never by a traceback."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from sgl_kernels.cli import app

runner = CliRunner(env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"})

BAD = [
    # arguments, the argument that is named, what is named of it, and what to do
    ("explain atention", ["OP", "'atention'", "did you mean 'attention'"]),
    ("explain attention --shape 1,2,x,4", ["--shape", "'1,2,x,4'", "such as 1,4096,24,128"]),
    ("explain attention --shape 1,2,3", ["q", "[1, 2, 3]", "expected 4"]),
    ("explain attention --shape 1,64,6,64 --kv-shape 1,64,4,64", ["6 heads", "4", "must be a multiple"]),
    ("explain attention --shape 1,64,4,64 --dtype int8", ["--dtype", "'int8'", "Expected one of: float32"]),
    ("explain attention --shape 1,64,4,64 --device tpu", ["device", "'tpu'", "expected one of cuda"]),
    ("explain attention --shape 1,64,4,64 --device cuda:gfx942", ["cuda:gfx942", "looks like sm90"]),
    ("explain attention --shape 1,64,4,64 --backend fa9", ["--backend", "'fa9'", "did you mean"]),
    ("explain attention --shape 1,64,4,64 --mask boolean", ["--mask", "'boolean'", "did you mean 'bool'"]),
    (
        "explain rms_norm --shape 4,64 --mask bool",
        ["--mask", "rms_norm has no attn_mask", "leave --mask out"],
    ),
    ("explain attention --shape 1,64,4,64 --window wide", ["--window", "'wide'", "such as 512,0"]),
    ("explain attention --shape 1,64,4,64 --set softcap", ["--set", "'softcap'", "NAME=VALUE"]),
    (
        "explain attention --shape 1,64,4,64 --set dropout=0.1",
        ["--set", "'dropout'", "its arguments: q, k, v"],
    ),
    ("explain rms_norm --tensor weight=64:int3", ["--tensor", "'int3'", "expected one of float32"]),
    (
        "explain attention --shape 1,64,4,64 --package flash-attn",
        ["--package", "'flash-attn'", "NAME=VERSION"],
    ),
    ("explain attention --case fluxx", ["attention has no case", "'fluxx'", "list cases --op attention"]),
    (
        "explain attention --case gqa --shape 1,2,3,4",
        ["--case gqa already has shapes", "expected no --shape"],
    ),
    ("explain attention_varlen --shape 10,4,64 --lengths 3,4", ["--lengths add up to 7", "10 tokens"]),
    (
        "explain norm_scale_shift --shape 1,6,8 --params frames",
        ["--params", "'frames'", "did you mean 'frame'"],
    ),
    ("explain attention --shape 1,64,4,64 --lengths 3,4", ["--lengths", "attention_varlen", "leave"]),
    ("explain attention_varlen --lengths 3,4", ["--lengths", "without --shape"]),
    ("explain rms_norm --shape 4,64 --kv-shape 4,64", ["--kv-shape", "rms_norm", "leave --kv-shape out"]),
    ("explain rms_norm --shape 4,64 --params token", ["--params", "rms_norm", "leave --params out"]),
    ("explain rms_norm --shape 4,64 --causal", ["--causal", "rms_norm", "leave it out"]),
    ("explain attention --set softcap=1 --set softcap=2", ["--set", "'softcap' twice"]),
    ("explain attention --causal --set is_causal=false", ["--set", "'is_causal' twice"]),
    (
        "explain attention --package flash-atn=2.8.3",
        ["--package", "'flash-atn'", "did you mean 'flash-attn'"],
    ),
    ("explain attention --shape 999999999,999999999,9,9", ["--shape", "more than any tensor"]),
    ("list ops --op attention", ["--op", "list cases --op attention"]),
    ("parity --device meta", ["--device", "'meta'", "Expected a torch device"]),
    ("parity --seed 1e23", ["--seed", "1e23"]),
    ("parity --seed 99999999999999999999", ["--seed is 99999999999999999999", "from 0 to"]),
    ("doctor --timeout 1e300", ["--timeout is 1e+300", "from 1 to 86400"]),
    ("bench dispatch --case x", ["--case", "goes with ops"]),
    ("list backend", ["WHAT", "'backend'", "did you mean 'backends'"]),
    ("env --section clod", ["--section", "'clod'", "Expected one of: Runtime"]),
    ("config check missing.yaml", ["FILE", "'missing.yaml'", "looked in"]),
    ("parity --op norms --tag smoke", ["--op", "'norms'", "did you mean 'norm'"]),
    ("parity --backend trition", ["--backend", "'trition'", "did you mean 'triton'"]),
    ("parity --tag smok", ["--tag", "'smok'", "did you mean 'smoke'"]),
    ("parity --device cuda:7 --tag smoke", ["--device", "'cuda:7'", "Expected a torch device"]),
    ("parity --op gelu_tanh --case nothing*", ["no cell matches", "--case", "loosen"]),
    ("parity --html no/such/folder/page.html", ["--html", "no/such/folder", "create it first"]),
    ("parity --seed -1", ["--seed is -1", "at least 0"]),
    ("bench gelu", ["WHAT", "'gelu'", "did you mean"]),
    ("bench gelu_tanh --threads 0", ["--threads", "'0'", "such as 1,2"]),
    ("bench gelu_tanh --clock cpu --threads 1,2", ["--clock", "'cpu'", "--threads 1"]),
    ("bench gelu_tanh --clock sun", ["--clock", "'sun'", "Expected one of: wall, cpu"]),
    ("bench gelu_tanh --case nothing*", ["no case matches", "nothing*", "list cases"]),
    ("bench dispatch attention", ["WHAT", "dispatch", "stands alone"]),
    ("bench gelu_tanh --out result.txt", ["--out", "result.txt", ".json"]),
    ("doctor --device h100", ["device", "'h100'", "cuda:sm90"]),
    ("doctor --timeout 0", ["--timeout is 0", "at least 1"]),
    ("bench gelu_tanh --rounds 0", ["--rounds is 0", "at least 1"]),
    ("dcotor", ["dcotor", "doctor"]),
]


@pytest.mark.parametrize("line, expected", BAD, ids=[line for line, _ in BAD])
def test_bad_input_is_answered(line, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, line.split())
    text = " ".join((result.stderr + result.stdout).replace("│", " ").split())
    code = 1 if line.startswith("config check") else 2
    assert result.exit_code == code, text
    for part in expected:
        assert part in text, f"{part!r} not in: {text}"
    assert "Traceback" not in text


def test_settings_that_do_not_parse_are_one_message():
    result = runner.invoke(app, ["env"], env={"SGLANG_DIFFUSION_TARGET_DEVICE": "gpu"})
    assert result.exit_code == 2
    assert "SGLANG_DIFFUSION_TARGET_DEVICE is 'gpu'; expected one of" in result.stderr
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback():
    result = runner.invoke(app, ["--debug", "explain", "attention", "--shape", "1,2,3"])
    assert isinstance(result.exception, ValueError)
