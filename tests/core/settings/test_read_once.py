"""Each value that somebody wrote is checked and coerced once, whichever way it came."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sgl_kernels.core.names.backends import resolve_names
from sgl_kernels.core.selection.policy import OpPolicy
from sgl_kernels.core.settings import Located, Settings, load_settings
from sgl_kernels.core.settings.variable import coerce

FILE = """
default: {deny: xformers, strict: false}
attention: fa3
norm: {backends: [triton, flashinfer], allow_lossy: true}
ops: {silu_mul: mlx}
rules:
  - {op: attention, role: self, shape: long, backends: fa2}
  - {op: norm, layer: "*.mid.*", backends: [aiter, triton]}
options: {sage: {tile: 4}}
check: true
tuning_paths: [a.json, ~/b.json]
trace: {level: 3}
cache_dit: {fn: 2, rdt: 0.5, scm_compute_bins: [8, 3], scm_cache_bins: [1, 2]}
"""


def readings(do: Callable[[], Any]) -> tuple[Any, Counter[str]]:
    """What `do` gives, and how often each text or value was read meanwhile."""
    seen: Counter[str] = Counter()

    def watch(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code is coerce.__code__:
            seen[f"{frame.f_locals['row'].key}: {frame.f_locals['value']!r}"] += 1
        elif event == "call" and frame.f_code is resolve_names.__code__:
            seen[f"names: {frame.f_locals['text']!r}"] += 1

    sys.setprofile(watch)
    try:
        return do(), seen
    finally:
        sys.setprofile(None)


def test_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(FILE)
    flags = {"attention_config": str(path), "check": "0", "modulate.backends": "torch"}
    environ = {"SGL_KERNELS_STRICT": "1", "SGL_KERNELS_CPU_ISA": "AVX2", "HOME": str(tmp_path)}
    settings, seen = readings(lambda: load_settings(environ, flags, known_backends=()))
    assert {what: n for what, n in seen.items() if n > 1} == {}
    names = ("'fa3'", "'fa2'", "['triton', 'flashinfer']", "['aiter', 'triton']", "'sage'")
    values = (
        "strict: False",
        "strict: '1'",
        "cpu_isa: 'AVX2'",
        "trace.level: 3",
        "check: True",
        "check: '0'",
    )
    expected = {*(f"names: {name}" for name in names), *values}
    assert expected - set(seen) == set()
    assert settings.policy("rms_norm").prefer == ("triton", "flashinfer") and settings.cpu_isa == "avx2"
    assert settings.tuning_paths == ("a.json", str(tmp_path / "b.json"))
    assert settings.cache_dit.scm_compute_bins == (8, 3) and hash(settings)
    rule = next(r for r in settings.rules if r.layer)
    assert (rule.op, rule.prefer) == ("rms_norm", ("aiter", "triton"))


@pytest.mark.parametrize("given", ["text", "policy"])
def test_of_an_override(given: str) -> None:
    wanted: Any = "fa3, fa2" if given == "text" else OpPolicy(prefer=("nobody",), deny=frozenset({"fa2"}))
    settings, seen = readings(lambda: Settings().override(per_op={"attention": wanted}, strict=True))
    assert seen["names: 'fa3, fa2'"] == (given == "text") and max(seen.values()) == 1
    assert not any("nobody" in what for what in seen), "a policy holds values, no text"
    policy = settings.policy("attention")
    assert policy.prefer == (("fa3", "fa2") if given == "text" else ("nobody",))
    assert policy.deny == (frozenset() if given == "text" else {"fa2"})


def test_of_a_layer_that_says_nothing_of_itself() -> None:
    """A plain mapping is text or values that nobody has read: it is read."""
    layer = Located({"check": "maybe"})
    with pytest.raises(ValueError, match="check is 'maybe'; expected one of 1, true"):
        load_settings({}, layer)
