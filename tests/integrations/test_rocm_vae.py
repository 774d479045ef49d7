"""The two ROCm flags, on a machine that says it is an MI300X: group norm by AITER, and scoped MIOpen searches."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn

import sgl_kernels
from sgl_kernels.core import dispatch
from sgl_kernels.core.device import Device
from sgl_kernels.core.dispatch import Dispatcher, activate
from sgl_kernels.core.selection import packages
from sgl_kernels.core.settings import Settings
from sgl_kernels.core.settings.sections import Rocm
from sgl_kernels.integrations import rocm_vae
from tests.backends import contract
from tests.backends.test_aiter import groupnorm_run

VAE_ON = Settings(rocm=Rocm(vae=True))
SEARCH_ON = Settings(rocm=Rocm(cudnn_benchmark=True))


class Watching(nn.Conv2d):
    """A convolution that notes what the switch was while it ran."""

    seen: list

    def forward(self, x):
        self.__dict__.setdefault("seen", []).append(torch.backends.cudnn.benchmark)
        if x.shape[-1] == 1:
            raise ValueError("too small")
        return super().forward(x)


class AutoencoderTiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = Watching(8, 8, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


@pytest.fixture(autouse=True)
def _switch_off():
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    yield
    torch.backends.cudnn.benchmark = before


@pytest.fixture
def mi300x(monkeypatch, tmp_path):
    """CPU tensors that are believed to be on an MI300X, where AMD's aiter is installed."""
    info = tmp_path / "amd_aiter-0.1.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: amd-aiter\nVersion: 0.1.9\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        dispatch, "probe", lambda device: Device("rocm", "gfx942", name="AMD Instinct MI300X")
    )
    calls = []

    def counted(x, *args):
        calls.append(x.shape)
        return groupnorm_run(x, *args)

    contract.install(monkeypatch, {"aiter.ops.groupnorm": {"groupnorm_run": counted}})
    packages.installed_version.cache_clear()
    yield calls
    packages.installed_version.cache_clear()


@pytest.mark.parametrize("settings, served", [(VAE_ON, 1), (Settings(), 0)])
@torch.no_grad()
def test_an_applied_vae_takes_aiters_group_norm_with_the_flag(mi300x, settings, served):
    vae, x = AutoencoderTiny(), torch.randn(2, 8, 4, 4)
    want = vae(x)
    with activate(Dispatcher(settings)), sgl_kernels.apply(vae):
        if not served:  # the floor of this pretended machine
            with sgl_kernels.use(backend="torch"):
                got = vae(x)
        else:
            got = vae(x)
            assert "aiter" in {e.backend for e in sgl_kernels.report().entries}
    assert len(mi300x) == served
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_the_switch_is_on_inside_the_convolution_only():
    vae, x = AutoencoderTiny(), torch.randn(1, 8, 4, 4)
    assert rocm_vae.tune_convolutions(vae) == 1
    vae(x)
    assert vae.conv.seen == [True] and torch.backends.cudnn.benchmark is False
    with pytest.raises(ValueError, match="too small"):
        vae(torch.randn(1, 8, 1, 1))
    assert vae.conv.seen == [True, True] and torch.backends.cudnn.benchmark is False


def test_a_switch_that_was_on_stays_on():
    torch.backends.cudnn.benchmark = True
    vae = AutoencoderTiny()
    rocm_vae.tune_convolutions(vae)
    vae(torch.randn(1, 8, 4, 4))
    assert torch.backends.cudnn.benchmark is True


def test_an_error_in_somebody_elses_hook_leaves_the_switch_alone():
    vae = AutoencoderTiny()

    def theirs(module, args):
        raise RuntimeError("theirs")

    vae.conv.register_forward_pre_hook(theirs)
    rocm_vae.tune_convolutions(vae)
    with pytest.raises(RuntimeError, match="theirs"):
        vae(torch.randn(1, 8, 4, 4))
    assert torch.backends.cudnn.benchmark is False and rocm_vae._switch._inside == 0


def test_overlapping_threads_restore_it_once_both_are_out():
    gate, vaes = threading.Barrier(2), [AutoencoderTiny(), AutoencoderTiny()]

    def together(module, args):
        gate.wait(5)

    for vae in vaes:
        vae.conv.register_forward_pre_hook(together)
        rocm_vae.tune_convolutions(vae)
    x = torch.randn(1, 8, 4, 4)
    threads = [threading.Thread(target=lambda v=vae: [v(x) for _ in range(20)]) for vae in vaes]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(v.conv.seen == [True] * 20 for v in vaes) and torch.backends.cudnn.benchmark is False


def test_apply_asks_the_flag_the_platform_and_the_model(monkeypatch):
    vae, plain = AutoencoderTiny(), nn.Sequential(nn.Conv2d(8, 8, 3))
    assert not rocm_vae.wanted(vae, SEARCH_ON), "not on this platform"
    monkeypatch.setattr(torch.version, "hip", "7.1")
    assert rocm_vae.wanted(vae, SEARCH_ON)
    assert not rocm_vae.wanted(plain, SEARCH_ON) and not rocm_vae.wanted(vae, Settings())
    with activate(Dispatcher(SEARCH_ON)):
        applied = sgl_kernels.apply(vae, norms=False)
        copied = copy.deepcopy(vae)
        for model in (vae, copied):
            model(torch.randn(1, 8, 4, 4))
            assert model.conv.seen[-1] is True
        applied.remove()
        vae(torch.randn(1, 8, 4, 4))
    assert vae.conv.seen[-1] is False
    assert not vae.conv._forward_hooks and not vae.conv._forward_hooks_always_called
