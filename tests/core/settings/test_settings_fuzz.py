"""Whatever text comes in, settings come out or a ConfigError that names its source."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.names.ops import OP_GROUPS, OPS
from sgl_kernels.core.settings import load_settings, settle
from sgl_kernels.core.settings.file import load_file
from sgl_kernels.core.settings.file_schema import file_rows
from sgl_kernels.core.settings.layer import POLICY_FIELDS
from sgl_kernels.core.settings.variables import BY_NAME

WORDS = st.sampled_from(
    [
        "1",
        "on",
        "no",
        "fa",
        "fa3,sdpa",
        "cuda",
        "-1",
        "0.5",
        "none",
        "8,3",
        "/a",
        "http://a",
        "a,b",
        "INFO",
        "~",
        "%i",
    ]
)
TEXT = WORDS | st.text(max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXT, v, max_size=3), max_leaves=6
)
PARTS = sorted({part for row in file_rows() for part in row.key.split(".")})
OTHERS = ("version", "default", "ops", "rules", "options", "op", "role", "layer", "shape")
KEYS = st.sampled_from([*OTHERS, *OP_GROUPS, *OPS, *POLICY_FIELDS, *PARTS])
FILES = st.recursive(
    VALUES, lambda v: st.dictionaries(KEYS, v, max_size=4) | st.lists(v, max_size=2), max_leaves=12
)
RELAXED = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@RELAXED
@given(
    st.dictionaries(st.sampled_from([n for n in BY_NAME if n != "SGLANG_DIFFUSION_ATTENTION_CONFIG"]), TEXT)
)
def test_any_environment(environ: dict[str, str]) -> None:
    try:
        found = load_settings(environ, known_backends=())
    except ConfigError as error:
        assert str(error).startswith(("SGLANG_", "SGL_KERNELS_"))
    else:
        assert hash(found) == hash(load_settings(environ, known_backends=()))


@RELAXED
@given(FILES)
def test_any_data_in_a_file(tmp_path: Path, data: object) -> None:
    import yaml

    path = tmp_path / "any.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    try:
        hash(settle(("file", load_file(str(path)))))
    except ConfigError as error:
        assert str(error).startswith((str(path), "SGLANG_CACHE_DIT_SCM"))


@RELAXED
@given(st.text(alphabet="abc:-[]{}&*!|>'\"#%@,? \n\t01<", max_size=60), st.sampled_from([".yaml", ".json"]))
def test_any_text_in_a_file(tmp_path: Path, text: str, suffix: str) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_text(text, encoding="utf-8")
    try:
        load_file(str(path))
    except ConfigError as error:
        assert str(error).startswith(str(path))


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@RELAXED
@given(raw=st.binary(max_size=40))
def test_any_bytes_in_a_file(tmp_path: Path, suffix: str, raw: bytes) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_bytes(raw)
    try:
        load_file(str(path))
    except ConfigError as error:
        assert str(error).startswith(str(path))
