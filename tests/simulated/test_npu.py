"""End to end on a simulated Ascend 910B, with torch_npu's ops under its real schemas."""

from __future__ import annotations

import sys

import pytest
import torch

import sgl_kernels
from sgl_kernels.core.device import Device, platform_is_present, probe, target_device
from sgl_kernels.core.dispatch import Dispatcher, activate
from sgl_kernels.core.registry import Registry, registry
from sgl_kernels.core.selection.packages import installed_version
from sgl_kernels.core.selection.verdict import Reason
from sgl_kernels.core.settings import Settings
from tests.backends import npu_ops
from tests.simulated import device, end_to_end, scales


@pytest.fixture(scope="module", autouse=True)
def npu(tmp_path_factory):
    device.register("npu", "Ascend910B3")
    folder = tmp_path_factory.mktemp("site")
    info = folder / "torch_npu-2.13.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-npu\nVersion: 2.13.0\n")
    sys.path.insert(0, str(folder))
    installed_version.cache_clear()
    library, sys.modules["torch_npu"] = npu_ops.define("npu", "PrivateUse1")
    yield library


def test_the_device_is_recognised():
    assert probe(torch.device("npu", 1)) == Device("npu", "ascend910b", None, "Ascend910B3", 1)
    assert platform_is_present("npu") and target_device("npu") == torch.device("npu")
    assert target_device(None).type == "npu", "an accelerator goes before the CPU"


@pytest.mark.parametrize(
    "op", ["attention", "attention_lse", "rms_norm", "silu_mul", "gelu_tanh", "apply_rope"]
)
def test_the_vendors_ops_serve(op):
    assert "ascend" in end_to_end.smoke(op, "npu", torch.bfloat16)


@pytest.mark.parametrize(
    "op", ["layer_norm", "norm_scale_shift", "residual_gate_norm_scale_shift", "gate_residual"]
)
def test_the_floor_serves_the_rest(op):
    assert end_to_end.smoke(op, "npu", torch.float32) == {"torch"}


def test_the_second_device():
    end_to_end.smoke("attention", "npu:1", torch.bfloat16)


def test_compiled():
    end_to_end.compiled_block("npu")


def test_errors():
    end_to_end.errors_name_the_device("npu")


def test_gradients_come_from_the_floor():
    q = torch.randn(1, 6, 2, 16, device="npu", dtype=torch.bfloat16, requires_grad=True)
    sgl_kernels.attention(q, q, q).sum().backward()
    assert q.grad is not None and q.grad.device.type == "npu" and torch.isfinite(q.grad.cpu()).all()


def test_a_broken_torch_npu_leaves_the_call_to_the_floor(monkeypatch):
    """Installed, and its import raises because CANN is missing."""
    monkeypatch.setitem(sys.modules, "torch_npu", None)
    fresh = Registry()
    for op in registry.ops().values():
        fresh.define(op)
        fresh.add(registry.implementations(op.name), "test")
    q = torch.randn(1, 6, 2, 16, dtype=torch.bfloat16)
    with activate(Dispatcher(Settings(), source=fresh)) as dispatcher:
        out = sgl_kernels.attention(q.npu(), q.npu(), q.npu())
        (selection,) = dispatcher.selections.values()
    assert selection.chosen == "torch" and selection.rejected("ascend").reason is Reason.LOAD
    torch.testing.assert_close(out.cpu(), sgl_kernels.attention(q, q, q), rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("change", scales.SPOILT)
def test_scales_on_the_device_are_refused_at_their_first_use(change):
    scales.refused(change, "npu")


def test_scales_on_the_device_are_looked_at_once(monkeypatch):
    scales.looked_at_once("npu", monkeypatch)
