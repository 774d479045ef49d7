"""MLX: the crossing and the mathematics on its CPU build; the Metal kernels' own sources compiled as C++."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
from packaging.version import Version

from sgl_kernels.core.device import parse_device
from sgl_kernels.core.dispatch import Dispatcher
from sgl_kernels.core.registry import Registry, registry
from sgl_kernels.core.selection.verdict import Reason
from sgl_kernels.core.settings import OpPolicy, Settings, load_settings
from sgl_kernels.core.settings.sections import Apple
from tests.backends import contract

mx = pytest.importorskip("mlx.core", reason="pip install mlx[cpu] to test the crossing to MLX")
from sgl_kernels.kernels.mlx import bridge, metal  # noqa: E402

OPS = {
    "rms_norm": 20, "layer_norm": 20, "norm_scale_shift": 30, "residual_gate_norm_scale_shift": 30, "apply_rope": 25,
}  # fmt: skip


@pytest.mark.parametrize("op", OPS)
def test_the_mathematics(op, monkeypatch):
    """As on a Mac whose Metal kernels failed their check: the crossing, and MLX's own ops."""
    monkeypatch.setattr(bridge, "require_metal", lambda: None)
    contract.check(op, "mlx", at_least=OPS[op], proof="simulated")


def test_the_kernels_are_checked_before_they_are_trusted(caplog):
    """On this machine they cannot run at all, which the check says in words instead of raising."""
    assert "Metal" in metal.agrees() or mx.metal.is_available()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (7,)])
def test_the_crossing_keeps_values_and_types(dtype, shape):
    x = torch.randn(shape).to(dtype)
    (same,) = bridge.cross(lambda a: (a,), x)
    assert same.dtype is dtype and torch.equal(same, x)
    (copied,) = (bridge._copied(mx.from_dlpack(x)),)
    assert copied.dtype is dtype and torch.equal(copied, x)


def test_the_crossing_takes_views_and_leaves_inputs_alone():
    x = torch.randn(4, 6)
    before = x.clone()
    (out,) = bridge.cross(lambda a, b: (a * 2,), x.t(), None)
    out.zero_()
    assert torch.equal(x, before) and out.shape == (6, 4)


def test_the_crossing_is_synchronised(monkeypatch):
    """torch is waited for before MLX reads, and only on a GPU."""
    waits = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waits.append(bridge.LOCK._is_owned()))
    bridge.cross(lambda a: (a,), torch.ones(2))
    assert waits == []
    fake = type("T", (), {"device": torch.device("mps")})()
    monkeypatch.setattr(bridge, "_imported", lambda t: mx.ones(2))
    monkeypatch.setattr(bridge, "_exported", lambda a, device: a)
    bridge.cross(lambda a: (a,), fake)
    assert waits == [True], "synchronised once, with the lock held"


def test_threads_take_turns():
    inside, worst = [], []

    def compute(a):
        inside.append(1)
        worst.append(len(inside))
        result = a + 1
        inside.pop()
        return (result,)

    threads = [
        threading.Thread(target=lambda: [bridge.cross(compute, torch.ones(8)) for _ in range(20)])
        for _ in range(4)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(worst) == 80 and max(worst) == 1


def _decide(settings, version="0.32.4"):
    op = registry.op("rms_norm")
    x = torch.empty(4, 8, device="meta")
    facts = op.facts(*op.canonical(x, x[0]))
    versions = {"mlx": Version(version)} if version else {}
    return Dispatcher(settings).decide(op, None, facts, parse_device("mps:m3"), versions.get)


def test_the_flag():
    on = load_settings(environ={"SGLANG_USE_MLX": "1"})
    assert _decide(on).chosen == "mlx"
    for off in (Settings(), Settings(apple=Apple(use_mlx=False))):
        assert (
            _decide(off).rejected("mlx").hint == "export SGLANG_USE_MLX=1" and _decide(off).chosen == "torch"
        )
    assert _decide(Settings(default=OpPolicy(prefer=("mlx",)))).chosen == "mlx", "naming it is asking for it"


@pytest.mark.parametrize("version, detail", [("", "not installed"), ("0.18.0", "needs >=0.32")])
def test_absent_or_too_old(version, detail):
    rejected = _decide(Settings(apple=Apple(use_mlx=True)), version).rejected("mlx")
    assert rejected.reason is Reason.PACKAGE and detail in rejected.detail and "pip install" in rejected.hint


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has Metal")
def test_without_metal_is_a_load_failure_with_a_reason():
    found = Registry().loaded(contract.implementation("rms_norm", "mlx"), None)
    assert found.reason is Reason.LOAD and "no Metal back end" in found.detail
