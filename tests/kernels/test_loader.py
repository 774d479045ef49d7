"""A library that is not there, or holds nothing, is said to: by explain, by doctor, and by the first call."""

from __future__ import annotations

import pytest
import torch

import sgl_kernels
from sgl_kernels.core import log
from sgl_kernels.core.dispatch import Dispatcher, activate
from sgl_kernels.core.selection.verdict import Reason
from sgl_kernels.core.settings import Settings
from sgl_kernels.kernels.cpu import loader
from sgl_kernels.tools.doctor import diagnosis as doctor

MISSING = "the C++ extension was not built: no C++ compiler"


@pytest.fixture
def missing(monkeypatch):
    """As if nothing had been built."""
    monkeypatch.setattr(loader, "_outcome", [MISSING])
    monkeypatch.setattr(loader, "library_path", lambda: None)
    log.forget_warnings()
    with activate(Dispatcher(Settings())):
        yield
    log.forget_warnings()


def test_a_file_without_operations_is_refused(tmp_path, monkeypatch):
    from types import SimpleNamespace

    library = tmp_path / "_cpu.so"
    library.write_text("")
    monkeypatch.setenv(loader.LIBRARY_VARIABLE, str(library))
    assert "does not load" in loader._load()
    monkeypatch.setattr(loader.torch.ops, "load_library", lambda path: None)
    held = dict.fromkeys(loader.OPS, lambda: "baseline")
    for names, said in (
        ({}, "holds no operation: it was built without its sources"),
        ({k: v for k, v in held.items() if k != "linear"}, "built from other sources: it lacks linear"),
    ):
        monkeypatch.setitem(torch.ops.__dict__, "sgl_kernels_cpu", SimpleNamespace(**names))
        assert said in loader._load()
    monkeypatch.setitem(torch.ops.__dict__, "sgl_kernels_cpu", SimpleNamespace(**held))
    assert loader._load() is None
    library.unlink()
    assert "which SGL_KERNELS_CPU_LIBRARY names, does not exist" in loader._load()


def test_what_the_build_said_is_passed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "PACKAGE", tmp_path)
    monkeypatch.delenv(loader.LIBRARY_VARIABLE, raising=False)
    assert loader._load() == "the C++ extension was not built"
    (tmp_path / "_cpu.not-built.txt").write_text(
        "g++ -O3 a.cpp\na.cpp:1: note\na.cpp:2: error: no such thing\n"
    )
    assert loader._load() == "the C++ extension was not built: a.cpp:2: error: no such thing"


@pytest.mark.parametrize("op", ["rms_norm", "attention", "linear", "silu_mul"])
def test_explain_does_not_offer_what_is_not_there(op, missing):
    x = torch.randn(64, 512)
    calls = {
        "attention": (x.view(1, 64, 8, 64),) * 3, "linear": (x, torch.randn(256, 512)), "silu_mul": (x,),
    }  # fmt: skip
    selection = sgl_kernels.explain(op, *calls.get(op, (x,)))
    rejected = selection.rejected("cpu")
    assert selection.chosen == "torch"
    assert rejected.reason is Reason.LOAD and rejected.detail == MISSING and "doctor" in rejected.hint


def test_explain_of_another_kind_of_device_loads_nothing(monkeypatch):
    monkeypatch.setattr(loader, "load", lambda: pytest.fail("loaded for a device it is not for"))
    with activate(Dispatcher(Settings())):
        sgl_kernels.explain("rms_norm", torch.empty(64, 512, device="meta"), device="cuda:sm90")


def test_torch_serves_with_one_warning(missing, caplog):
    with caplog.at_level("WARNING", "sgl_kernels"):
        for rows in (64, 65):
            sgl_kernels.rms_norm(torch.randn(rows, 512))
            sgl_kernels.silu_mul(torch.randn(rows, 512))
    (warning,) = [r.getMessage() for r in caplog.records]
    assert MISSING in warning and "torch runs instead" in warning and "sgl-kernels doctor" in warning


def test_doctor_says_so_and_names_a_command_that_is_there(missing, monkeypatch):
    diagnosis = doctor.examine(probe_vendors=False, environ={})
    cpu = next(f for f in diagnosis.backends if f.name == "cpu")
    assert cpu.status == diagnosis.extension.status == "absent" and MISSING in cpu.detail
    assert "pip install" in cpu.fix and "==" not in cpu.fix
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    assert doctor.extension_fix().startswith("install a C++20 compiler")


def test_a_library_that_is_there_and_does_not_work_is_broken(missing, monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "library_path", lambda: tmp_path / "_cpu.so")
    diagnosis = doctor.examine(probe_vendors=False, environ={})
    assert diagnosis.extension.status == "broken" and not diagnosis.is_healthy


@pytest.mark.parametrize("kind", ["sdist", "folder", "wheel", "gone", "index"])
def test_the_fix_names_the_sources_that_were_installed_from(kind, tmp_path, monkeypatch):
    from types import SimpleNamespace

    source = {"sdist": tmp_path / "a b.tar.gz", "wheel": tmp_path / "a.whl"}.get(kind, tmp_path / "tree")
    if kind in ("sdist", "wheel"):
        source.write_text("")
    elif kind == "folder":
        (source / "csrc" / "cpu").mkdir(parents=True)
        (source / "csrc" / "cpu" / "a.cpp").write_text("")
        (source / "setup.py").write_text("")
    record = None if kind == "index" else f'{{"url": "{source.as_uri()}"}}'
    monkeypatch.setattr(doctor, "PACKAGE", tmp_path / "site-packages" / "sgl_kernels")
    monkeypatch.setattr(
        doctor.importlib.metadata, "distribution", lambda name: SimpleNamespace(read_text=lambda file: record)
    )
    fix = doctor.extension_fix()
    if kind in ("sdist", "folder"):
        assert str(source) in fix and "--no-cache-dir" in fix
    else:
        assert str(source) not in fix and "in a checkout of sgl_kernels" in fix
