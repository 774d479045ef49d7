"""The registry: discovery, conflicts and what fails to join."""

from __future__ import annotations

import pytest

import sgl_kernels  # noqa: F401 - defines the ops
from sgl_kernels.core.registry import Registry, registry
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.selection.verdict import Reason, Rejected


def _fresh() -> Registry:
    fresh = Registry()
    for op in registry.ops().values():
        fresh.define(op)
    return fresh


def _implementation(**kw) -> Implementation:
    return Implementation(**{"op": "attention", "backend": "acme", "load": lambda config: print, **kw})


def test_in_tree_backends_are_found_and_none_is_broken():
    assert "torch" in registry.backends()
    assert registry.failures == ()


def test_every_op_has_a_floor():
    for name in registry.ops():
        assert any(i.backend == "torch" for i in registry.implementations(name)), name


def test_two_providers_of_one_name_are_an_error_that_names_both():
    fresh = _fresh()
    fresh.add([_implementation()], "first")
    with pytest.raises(ValueError, match="provided twice: by first and by second"):
        fresh.add([_implementation()], "second")


def test_an_unknown_op_is_refused():
    with pytest.raises(ValueError, match="unknown op 'attentoin'"):
        _fresh().add([_implementation(op="attentoin")], "acme")


def test_an_op_is_asked_for_by_its_nearest_name():
    with pytest.raises(KeyError, match="did you mean 'rms_norm'"):
        registry.op("rmsnorm")


def test_a_broken_module_is_a_failure_not_a_crash(tmp_path, monkeypatch):
    package = tmp_path / "broken_backends_pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "bad.py").write_text("raise RuntimeError('no driver')")
    (package / "good.py").write_text(
        "from sgl_kernels.core.selection.implementation import Implementation\n"
        "IMPLEMENTATIONS = (Implementation(op='attention', backend='good', load=lambda c: print),)\n"
    )
    (package / "_helper.py").write_text("raise RuntimeError('never imported')")
    monkeypatch.syspath_prepend(tmp_path)
    fresh = Registry(("broken_backends_pkg",))
    for op in registry.ops().values():
        fresh.define(op)
    assert fresh.backends() == ("good",)
    (failure,) = fresh.failures
    assert failure.source == "broken_backends_pkg.bad" and "no driver" in failure.error


def test_loading_is_tried_once_and_a_failure_keeps_its_first_line():
    calls = []

    def load(config):
        calls.append(config)
        raise ImportError("libacme.so: cannot open\nmore")

    fresh, implementation = _fresh(), _implementation(load=load)
    for _ in range(3):
        assert fresh.loaded(implementation, None) == Rejected(
            Reason.LOAD, "ImportError: libacme.so: cannot open"
        )
    assert calls == [None]
