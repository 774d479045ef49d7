"""The table of variables: complete, consistent, and strict about what it reads."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.settings import Settings, load_settings
from sgl_kernels.core.settings.environment import from_env, unknown
from sgl_kernels.core.settings.listing import describe, markdown
from sgl_kernels.core.settings.variable import FALSE, KINDS, TRUE, Variable, coerce, show
from sgl_kernels.core.settings.variables import BY_KEY, BY_NAME, PREFIXES, TABLE

# The user's page: name and default. The table must have every one of them.
PAGE = """
SGLANG_DIFFUSION_TARGET_DEVICE cuda
SGLANG_DIFFUSION_ATTENTION_BACKEND
SGLANG_DIFFUSION_ATTENTION_CONFIG
SGLANG_DIFFUSION_STAGE_LOGGING false
SGLANG_DIFFUSION_SERVER_DEV_MODE false
SGLANG_DIFFUSION_TORCH_PROFILER_DIR
SGLANG_DIFFUSION_CACHE_ROOT ~/.cache/sgl_diffusion
SGLANG_DIFFUSION_CONFIG_ROOT ~/.config/sgl_diffusion
SGLANG_DIFFUSION_LOGGING_LEVEL INFO
SGLANG_DIFFUSION_WORKER_MULTIPROC_METHOD fork
SGLANG_USE_RUNAI_MODEL_STREAMER true
SGLANG_USE_MLX
SGLANG_USE_ROCM_VAE false
SGLANG_USE_ROCM_CUDNN_BENCHMARK false
SGLANG_DIFFUSION_FLASHINFER_FP4_GEMM_BACKEND
SGLANG_CACHE_DIT_ENABLED false
SGLANG_CACHE_DIT_FN 1
SGLANG_CACHE_DIT_BN 0
SGLANG_CACHE_DIT_WARMUP 4
SGLANG_CACHE_DIT_RDT 0.24
SGLANG_CACHE_DIT_MC 3
SGLANG_CACHE_DIT_TAYLORSEER false
SGLANG_CACHE_DIT_TS_ORDER 1
SGLANG_CACHE_DIT_SCM_PRESET none
SGLANG_CACHE_DIT_SCM_POLICY dynamic
SGLANG_CACHE_DIT_SCM_COMPUTE_BINS
SGLANG_CACHE_DIT_SCM_CACHE_BINS
SGLANG_CACHE_DIT_SECONDARY_FN
SGLANG_CACHE_DIT_SECONDARY_BN
SGLANG_CACHE_DIT_SECONDARY_WARMUP
SGLANG_CACHE_DIT_SECONDARY_RDT
SGLANG_CACHE_DIT_SECONDARY_MC
SGLANG_CACHE_DIT_SECONDARY_TAYLORSEER
SGLANG_CACHE_DIT_SECONDARY_TS_ORDER
SGLANG_CLOUD_STORAGE_TYPE
SGLANG_S3_BUCKET_NAME
SGLANG_S3_ENDPOINT_URL
SGLANG_S3_REGION_NAME us-east-1
SGLANG_S3_ACCESS_KEY_ID
SGLANG_S3_SECRET_ACCESS_KEY
SGLANG_KERNEL_API_LOGLEVEL 0
SGLANG_KERNEL_API_LOGDEST stdout
SGLANG_KERNEL_API_DUMP_DIR sglang_kernel_api_dumps
SGLANG_KERNEL_API_DUMP_INCLUDE
SGLANG_KERNEL_API_DUMP_EXCLUDE
"""
DEFAULTS = dict((*line.split(), "")[:2] for line in PAGE.split("\n") if line)


def test_the_table_is_the_page_and_ours() -> None:
    assert {name for name in BY_NAME if not name.startswith("SGL_KERNELS_")} == set(DEFAULTS)
    assert len(DEFAULTS) == 45
    assert len(BY_NAME) + 2 == len(TABLE) == len(BY_KEY)  # two rows exist in files only


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_those_of_the_page(name: str) -> None:
    row = BY_NAME[name]
    if name == "SGLANG_DIFFUSION_TARGET_DEVICE":  # 'cuda' on a machine without CUDA would help nobody
        assert row.default is None
    elif not name.startswith("SGLANG_CACHE_DIT_SECONDARY_"):
        assert show(row, row.default) == DEFAULTS[name]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.key)
def test_rows_are_whole(row: Variable) -> None:
    assert row.kind in KINDS and row.meaning and row.section
    assert not row.meaning.endswith(".") and len(row.meaning) <= 95
    assert bool(row.choices) == (row.kind == "choice")
    assert not row.name or row.name.startswith((*PREFIXES, "SGLANG_USE_"))
    if not row.key.startswith("cache_dit.secondary."):
        assert Settings().value(row.key) == row.default
    if row.default not in (None, ()):
        assert coerce(row, row.default, row.key) == row.default
        assert coerce(row, show(row, row.default), row.key) == row.default, "what is printed can be read back"


GOOD = {
    "bool": [
        ("1", True),
        ("YES", True),
        ("On", True),
        (" true ", True),
        ("0", False),
        ("off", False),
        ("No", False),
    ],
    "float": [("0.1", 0.1), ("1e-2", 0.01), ("3", 3.0)],
    "patterns": [("attention, norm*/triton ,", ("attention", "norm*/triton"))],
    "counts": [("8,3, 3", (8, 3, 3)), ("5", (5,))],
    "path": [("a/b", "a/b")],
    "paths": [(os.pathsep.join(("a", "b")), ("a", "b")), (f"a{os.pathsep}", ("a",))],
    "absolute path": [("/a/b", "/a/b")],
    "url": [("http://minio:9000", "http://minio:9000"), ("HTTPS://a.b", "HTTPS://a.b")],
    "text": [("my-bucket", "my-bucket")],
}


@pytest.mark.parametrize("row", [r for r in TABLE if r.kind in GOOD], ids=lambda row: row.key)
def test_good_values(row: Variable) -> None:
    for text, value in GOOD[row.kind]:
        assert coerce(row, text, row.key) == value


@pytest.mark.parametrize("row", [r for r in TABLE if r.kind == "choice"], ids=lambda row: row.key)
def test_choices_in_any_case(row: Variable) -> None:
    for choice in row.choices:
        assert coerce(row, choice.upper(), "x") == coerce(row, f" {choice.lower()} ", "x") == choice
    for alias, choice in row.aliases:
        assert coerce(row, alias.lower(), "x") == choice


BAD = [
    (
        "SGLANG_DIFFUSION_TARGET_DEVICE",
        "cude",
        "one of cuda, rocm, xpu, npu, musa, mps, cpu; did you mean 'cuda'?",
    ),
    ("SGLANG_DIFFUSION_TARGET_DEVICE", "cuda:0", "one of cuda"),
    ("SGLANG_DIFFUSION_ATTENTION_BACKEND", "fa3;torch", "unknown backend 'fa3;torch'"),
    ("SGLANG_DIFFUSION_ATTENTION_BACKEND", "trition", "did you mean 'triton'?"),
    ("SGLANG_DIFFUSION_ATTENTION_BACKEND", "fa3,,sdpa", "a backend name is empty"),
    ("SGLANG_DIFFUSION_STAGE_LOGGING", "maybe", "one of 1, true, yes, on, 0, false, no, off"),
    ("SGLANG_DIFFUSION_SERVER_DEV_MODE", "flase", "did you mean 'false'?"),
    ("SGLANG_DIFFUSION_SERVER_DEV_MODE", "2", "one of 1, true"),
    ("SGLANG_DIFFUSION_TORCH_PROFILER_DIR", "traces", "an absolute path"),
    ("SGLANG_DIFFUSION_CACHE_ROOT", "a\nb", "a path"),
    ("SGLANG_DIFFUSION_LOGGING_LEVEL", "VERBOSE", "one of DEBUG, INFO"),
    ("SGLANG_DIFFUSION_WORKER_MULTIPROC_METHOD", "frok", "did you mean 'fork'?"),
    ("SGLANG_USE_MLX", "metal", "one of 1, true"),
    ("SGLANG_DIFFUSION_FLASHINFER_FP4_GEMM_BACKEND", "cutlas", "did you mean 'cutlass'?"),
    ("SGLANG_CACHE_DIT_FN", "abc", "a whole number, at least 1"),
    ("SGLANG_CACHE_DIT_FN", "0", "at least 1"),
    ("SGLANG_CACHE_DIT_FN", "1.5", "a whole number"),
    ("SGLANG_CACHE_DIT_BN", "-1", "at least 0"),
    ("SGLANG_CACHE_DIT_MC", "-2", "at least -1"),
    ("SGLANG_CACHE_DIT_MC", "٣", "a whole number"),
    ("SGLANG_CACHE_DIT_RDT", "nan", "a number, at least 0"),
    ("SGLANG_CACHE_DIT_RDT", "inf", "a number, at least 0"),
    ("SGLANG_CACHE_DIT_RDT", "-0.1", "at least 0"),
    ("SGLANG_CACHE_DIT_RDT", "0,24", "a number"),
    ("SGLANG_CACHE_DIT_TS_ORDER", "3", "a whole number from 1 to 2"),
    ("SGLANG_CACHE_DIT_SCM_PRESET", "turbo", "one of none, slow, medium, fast, ultra"),
    ("SGLANG_CACHE_DIT_SCM_POLICY", "dynamc", "did you mean 'dynamic'?"),
    ("SGLANG_CACHE_DIT_SCM_COMPUTE_BINS", "8,x", "a comma list of whole numbers, each at least 1"),
    ("SGLANG_CACHE_DIT_SCM_CACHE_BINS", "8,0", "each at least 1"),
    ("SGLANG_CACHE_DIT_SECONDARY_TAYLORSEER", "si", "one of 1, true"),
    ("SGLANG_CLOUD_STORAGE_TYPE", "gcs", "one of s3"),
    ("SGLANG_S3_ENDPOINT_URL", "minio:9000", "starts with http:// or https://"),
    ("SGLANG_S3_ENDPOINT_URL", "http://", "starts with http:// or https://"),
    ("SGLANG_KERNEL_API_LOGLEVEL", "x", "a whole number from 0 to 10"),
    ("SGLANG_KERNEL_API_LOGLEVEL", "11", "a whole number from 0 to 10"),
    ("SGLANG_KERNEL_API_LOGLEVEL", "9" * 100_000, "a whole number from 0 to 10"),
    ("SGL_KERNELS_STRICT", "ja", "one of 1, true"),
    ("SGL_KERNELS_CPU_ISA", "avx3", "did you mean 'avx"),
]


@pytest.mark.parametrize("name, text, expected", BAD, ids=lambda value: str(value)[:40])
def test_a_bad_value_names_variable_value_and_what_is_accepted(name: str, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({name: text}, known_backends=())
    message = str(caught.value)
    assert message.startswith(f"{name} is {text!r}"[:60])
    assert expected in message and len(message) < 1000


@pytest.mark.parametrize("value", [None, 1.5, b"x", object(), {"a": 1}, [1, object()], [[1]]])
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"bool", "float"}))
def test_typed_values_of_a_wrong_kind_are_errors_too(kind: str, value: object) -> None:
    with pytest.raises(ConfigError):
        coerce(Variable("", "k", kind, None, "", choices=("a",)), value, "k")


def test_one_vocabulary_for_booleans() -> None:
    assert len({*TRUE, *FALSE}) == 8
    for row in TABLE:
        if row.kind == "bool":
            assert [coerce(row, word, "x") for word in (*TRUE, *FALSE)] == [True] * 4 + [False] * 4


@pytest.mark.parametrize("blank", ["", " ", "\t"])
def test_blank_is_unset_for_every_variable(blank: str) -> None:
    environ = dict.fromkeys(BY_NAME, blank)
    assert from_env(environ) == {}
    assert load_settings(environ) == load_settings({})


def test_unknown_names_are_reported_with_the_nearest() -> None:
    environ = {
        "SGLANG_DIFFUSION_ATTENTION_BACKENDS": "fa",
        "SGLANG_CACHE_DIT_RTD": "1",
        "SGLANG_KERNEL_API_LOG_LEVEL": "1",
        "SGL_KERNELS_STRIKT": "1",
        "SGLANG_S3_BUCKET": "b",
        "SGLANG_OTHER": "1",
        "PATH": "/bin",
    }
    assert dict(unknown(environ)) == {
        "SGLANG_CACHE_DIT_RTD": "; did you mean 'SGLANG_CACHE_DIT_RDT'?",
        "SGLANG_DIFFUSION_ATTENTION_BACKENDS": "; did you mean 'SGLANG_DIFFUSION_ATTENTION_BACKEND'?",
        "SGLANG_KERNEL_API_LOG_LEVEL": "; did you mean 'SGLANG_KERNEL_API_LOGLEVEL'?",
        "SGLANG_S3_BUCKET": "; did you mean 'SGLANG_S3_BUCKET_NAME'?",
        "SGL_KERNELS_STRIKT": "; did you mean 'SGL_KERNELS_STRICT'?",
    }


def test_describe_lists_every_variable_once_with_its_origin() -> None:
    environ = {
        "SGLANG_DIFFUSION_ATTENTION_BACKEND": "fa",
        "SGLANG_CACHE_DIT_FN": "3",
        "SGLANG_CACHE_DIT_BN": "",
        "SGL_KERNELS_STRICT": "1",
    }
    rows = {row.name: row for row in describe(load_settings(environ), environ)}
    assert list(rows) == list(BY_NAME)
    backend = rows["SGLANG_DIFFUSION_ATTENTION_BACKEND"]
    assert (backend.value, backend.origin) == (
        "fa4,fa3,fa2",
        "environment SGLANG_DIFFUSION_ATTENTION_BACKEND",
    )
    assert (backend.status, rows["SGLANG_CACHE_DIT_FN"].status) == ("active", "not yet")
    secondary = rows["SGLANG_CACHE_DIT_SECONDARY_FN"]
    assert (secondary.value, secondary.origin) == ("3", "from primary (environment SGLANG_CACHE_DIT_FN)")
    assert rows["SGLANG_CACHE_DIT_BN"].origin == "built-in (the variable is empty)"
    assert rows["SGL_KERNELS_STRICT"].value == "true"
    assert rows["SGLANG_DIFFUSION_TARGET_DEVICE"].default == "best present"
    assert rows["SGLANG_S3_BUCKET_NAME"].value == "not set"


def test_secrets_are_never_shown() -> None:
    environ = {"SGLANG_S3_ACCESS_KEY_ID": "AKIA-visible", "SGLANG_S3_SECRET_ACCESS_KEY": "hunter2"}
    settings = load_settings(environ)
    printed = f"{settings!r} {settings} {describe(settings, environ)}"
    assert "AKIA" not in printed and "hunter2" not in printed
    assert settings.cloud.access_key_id == "AKIA-visible"
    with pytest.raises(ConfigError) as caught:
        load_settings({"SGLANG_S3_SECRET_ACCESS_KEY": "hun\x01ter2"})
    assert "ter2" not in str(caught.value)


def test_docs_hold_the_generated_table() -> None:
    text = (Path(__file__).parents[3] / "docs" / "settings.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `((?:SGLANG|SGL_KERNELS)_\w+)`", text, re.MULTILINE) == list(BY_NAME)
    assert markdown() in text, "run: python docs/generate_settings.py"
