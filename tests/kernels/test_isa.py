"""The C++ kernels follow the level that settings name, within one process, and are right at each."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F

import sgl_kernels
from sgl_kernels.backends._extension import absent, extension
from sgl_kernels.core import dispatch
from sgl_kernels.core.device import cpu_arch
from sgl_kernels.core.names.levels import LEVELS, held_down
from sgl_kernels.core.settings import Settings
from sgl_kernels.kernels.cpu import loader

pytestmark = pytest.mark.skipif(absent() is not None, reason=str(absent()))
PRESENT = extension().isa_level() if absent() is None else "baseline"
HERE = [level for level in LEVELS if level in LEVELS[PRESENT]]


@pytest.fixture(autouse=True)
def own_default():
    before = dispatch.set_default(None)
    yield
    dispatch.set_default(before)


@pytest.fixture(scope="module", autouse=True)
def as_found():
    yield
    assert extension().isa_level() == PRESENT


@pytest.mark.parametrize("level", [*LEVELS, None])
def test_settings_drive_the_library(level, caplog):
    sgl_kernels.configure(Settings())
    best = extension().isa_level()
    with caplog.at_level("WARNING", "sgl_kernels"):
        sgl_kernels.configure(Settings(cpu_isa=level))
    found = extension().isa_level()
    assert found == held_down(best, level)
    assert cpu_arch() == ("avx512bf16" if found == "amx" else found)
    lacking = level is not None and found != level
    assert [f"SGL_KERNELS_CPU_ISA is {level!r}, which this machine lacks" in m for m in caplog.messages] == [
        True
    ] * lacking
    sgl_kernels.configure(Settings())
    assert extension().isa_level() == best


def test_every_family_chooses_anew():
    """Each has tables of its own; the one of the lowest level has no linear layer."""
    seen = []
    for level in HERE:
        sgl_kernels.configure(Settings(cpu_isa=level))
        kernels = extension()
        seen.append((level, kernels.nvfp4_level(), kernels.linear_unsupported_reason()))
    for level, nvfp4, unsupported in seen:
        assert (nvfp4 == "baseline") == (level in ("baseline", "neon"))
        assert bool(unsupported) == (level in ("baseline", "neon"))
        assert not unsupported or f"the instruction set in force is {level}" in unsupported
    assert next(n for level, n, _ in seen if level == HERE[0]) == "baseline"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_right_at_every_level_of_one_process(dtype, seed):
    """The same calls, bound before and after each change, up and down the levels."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g).to(dtype)

    x, w, q = normal(48, 384), normal(80, 384), normal(1, 40, 4, 64)
    cos, sin = torch.randn(40, 32, generator=g), torch.randn(40, 32, generator=g)
    d, dq = x.double(), q.double()
    a, b = dq.chunk(2, -1)
    turn, swing = cos.double()[:, None], sin.double()[:, None]
    heads = dq.transpose(1, 2)
    wanted = {
        "silu_mul": F.silu(d[:, :192]) * d[:, 192:],
        "rms_norm": d / (d.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt(),
        "linear": d @ w.double().T,
        "rope": torch.cat([a * turn - b * swing, b * turn + a * swing], -1),
        "attention": F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2),
    }
    for level in (*HERE, *reversed(HERE), None):
        sgl_kernels.configure(Settings(cpu_isa=level))
        for _ in range(2):
            found = {
                "silu_mul": sgl_kernels.silu_mul(x, backend="cpu"),
                "rms_norm": sgl_kernels.rms_norm(x, backend="cpu"),
                "linear": sgl_kernels.linear(x, w, backend="cpu"),
                "rope": sgl_kernels.apply_rope(q, cos, sin, backend="cpu"),
                "attention": sgl_kernels.attention(q, q, q, backend="cpu"),
            }
            for op, got in found.items():
                error = (got.double() - wanted[op]).norm() / wanted[op].norm()
                assert error < (2e-6 if dtype is torch.float32 else 8e-3), (op, level, float(error))


def test_a_change_of_level_tears_no_call(seed):
    """Coefficients that one level prepared are in its own order: a call keeps the table that it began with."""
    if len(HERE) < 2:
        pytest.skip(f"this machine has {PRESENT} alone")
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 1056, generator=g).bfloat16()
    weight = torch.randn(1056, generator=g).bfloat16()
    d = x.double()
    wanted = d / (d.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    kernels, stop, errors = extension(), threading.Event(), []

    def call() -> None:
        while not stop.is_set():
            got = kernels.rms_norm(x, weight, 1e-6, 0.0).double()
            errors.append(float((got - wanted).norm() / wanted.norm()))

    thread = threading.Thread(target=call)
    thread.start()
    for _ in range(300):
        for level in HERE:
            kernels.set_isa(level)
    stop.set()
    thread.join()
    kernels.set_isa("")
    assert errors and max(errors) < 8e-3


def test_a_level_that_is_none_is_refused():
    with pytest.raises(RuntimeError, match="the level is 'avx1024'; expected one of baseline, neon, avx2"):
        extension().set_isa("avx1024")
    assert extension().isa_level() == PRESENT


def test_a_misspelt_variable_is_no_end(monkeypatch):
    """The library waits for settings that are right."""
    monkeypatch.setenv("SGL_KERNELS_CPU_ISA", "avx1024")
    monkeypatch.setattr(loader, "_outcome", [])
    assert "SGL_KERNELS_CPU_ISA is 'avx1024'; expected one of baseline" in str(loader.load())
    sgl_kernels.configure(Settings(cpu_isa=HERE[0]))
    assert loader.load() is None and extension().isa_level() == HERE[0]
    sgl_kernels.configure(Settings())


def test_the_variable_holds_from_the_first_call_on():
    """Also where the loader is asked before any settings are."""
    code = (
        "import sys, torch, sgl_kernels\n"
        "from sgl_kernels.kernels.cpu.loader import load\n"
        "def level(): return torch.ops.sgl_kernels_cpu.isa_level()\n"
        "print(load(), level())\n"
        "sgl_kernels.rms_norm(torch.ones(2, 8))\n"
        "print(level())\n"
        "sgl_kernels.configure(sgl_kernels.Settings())\n"
        "print(level())\n"
    )
    env = {**os.environ, "SGL_KERNELS_CPU_ISA": HERE[0]}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", HERE[0], HERE[0], PRESENT]
