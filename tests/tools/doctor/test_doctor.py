"""Doctor: what is there, what is not, and packages that crash or hang cannot take it down."""

from __future__ import annotations

import sys
import textwrap

import pytest
import torch

from sgl_kernels.core.device import parse_device
from sgl_kernels.tools.doctor import child as doctor_probe
from sgl_kernels.tools.doctor import diagnosis as doctor

BACKEND = """
    from sgl_kernels.core.selection.implementation import Implementation

    def load(config):
        {body}

    IMPLEMENTATIONS = (Implementation(op="gelu_tanh", backend="{name}", load=load),)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Installs a distribution whose backend runs `body` when it is loaded."""

    def install(name: str, body: str) -> str:
        (tmp_path / f"{name}_pkg.py").write_text(textwrap.dedent(BACKEND).format(name=name, body=body))
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            f"[sgl_kernels.backends]\n{name} = {name}_pkg:IMPLEMENTATIONS\n"
        )
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(p for p in sys.path if p)}")
        return name

    return install


def test_a_crash_a_hang_and_an_exit_cost_one_line_each(plugin):
    crash = plugin("crasher", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    leave = plugin("leaver", "import os; os._exit(7)")
    fine = plugin("fine", "return lambda x: x")
    outcomes = doctor_probe.probe_backends([crash, leave, fine], timeout_s=60)
    assert not outcomes[crash].works and "SIGSEGV" in outcomes[crash].detail
    assert not outcomes[leave].works and "exit code 7" in outcomes[leave].detail
    assert outcomes[fine].works


def test_a_hang_is_ended(plugin, monkeypatch):
    hang = plugin("hanger", "import time; time.sleep(600)")
    monkeypatch.setattr(doctor_probe, "START_S", 60.0)
    outcomes = doctor_probe.probe_backends([hang], timeout_s=1)
    assert "longer than 1 s" in outcomes[hang].detail


def test_a_missing_module_is_absent_and_not_broken(plugin):
    name = plugin("lacking", "import surely_not_installed_anywhere")
    outcome = doctor_probe.probe_backends([name], timeout_s=60)[name]
    assert outcome.is_absent and "surely_not_installed_anywhere" in outcome.detail


def test_examine_names_every_backend_and_the_command_that_fixes_it():
    diagnosis = doctor.examine(probe_vendors=False, environ={})
    by_name = {f.name: f for f in diagnosis.backends}
    assert by_name["torch"].status == "ready"
    assert diagnosis.versions["torch"] == torch.__version__
    assert all(f.detail for f in diagnosis.backends if f.status in ("absent", "broken"))


def test_examine_answers_for_a_machine_that_is_not_here():
    diagnosis = doctor.examine(device=parse_device("cuda:sm90"), environ={}, version_of=lambda name: None)
    fa2 = next(f for f in diagnosis.backends if f.name == "fa2")
    assert fa2.status == "absent" and "pip install" in fa2.fix
    assert next(f for f in diagnosis.backends if f.name == "torch").status == "ready"


def test_settings_that_cannot_be_used_are_problems():
    problems = doctor.settings_problems(
        {"SGLANG_DIFFUSION_ATTENTION_BACKEND": "fa9", "SGLANG_DIFFUSION_LOGING_LEVEL": "INFO"}
    )
    assert any("fa9" in p for p in problems) and any("SGLANG_DIFFUSION_LOGGING_LEVEL" in p for p in problems)


def test_a_target_that_this_machine_lacks_is_a_problem():
    (problem,) = doctor.settings_problems({"SGLANG_DIFFUSION_TARGET_DEVICE": "npu"})
    assert "which this machine does not have" in problem and "cpu" in problem


def test_extension_that_is_not_built_comes_with_its_command(monkeypatch):
    from sgl_kernels.kernels.cpu import loader

    monkeypatch.setattr(loader, "load", lambda: "the C++ extension is not built")
    monkeypatch.setattr(loader, "library_path", lambda: None)
    found = doctor.extension()
    assert found.status == "absent" and f"{sys.executable} -m pip install" in found.fix
