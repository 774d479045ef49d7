"""Devices: parsing, probing and the target."""

from __future__ import annotations

import pytest
import torch

from sgl_kernels.core import device as devices
from sgl_kernels.core.device import Device, parse_device, probe, target_device
from sgl_kernels.core.errors import ConfigError


@pytest.mark.parametrize(
    "text, expected",
    [
        ("cuda:sm90", Device("cuda", "sm90", (9, 0))),
        ("cuda:90", Device("cuda", "sm90", (9, 0))),
        ("cuda:sm120", Device("cuda", "sm120", (12, 0))),
        ("cuda:sm_100a", Device("cuda", "sm100", (10, 0))),
        ("rocm:gfx942", Device("rocm", "gfx942")),
        ("npu:ascend910b", Device("npu", "ascend910b")),
        ("musa:mp_31", Device("musa", "mp_31", (3, 1))),
        ("MPS", Device("mps")),
        (" cpu:avx512 ", Device("cpu", "avx512")),
    ],
)
def test_parse(text, expected):
    assert parse_device(text) == expected


@pytest.mark.parametrize("text", ["", "gpu", "cuda:hopper", "tpu:v5", "cuda:sm9"])
def test_parse_refuses_and_says_what_is_accepted(text):
    with pytest.raises(ConfigError, match=r"cuda|sm90"):
        parse_device(text)


def test_probe_describes_the_cpu():
    found = probe(torch.device("cpu"))
    assert found.platform == "cpu" and found.arch


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_probe_of_an_absent_device_never_raises(kind):
    assert probe(torch.device(kind)).platform in (kind, "rocm")


def test_target_device_defaults_to_the_best_platform_present(monkeypatch):
    monkeypatch.setattr(devices, "platform_is_present", lambda name: name in ("xpu", "cpu"))
    assert target_device(None) == torch.device("xpu")


def test_target_device_that_is_absent_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(devices, "platform_is_present", lambda name: name == "cpu")
    with pytest.raises(ConfigError, match=r"SGLANG_DIFFUSION_TARGET_DEVICE is 'npu'.*present: cpu"):
        target_device("npu")


def test_rocm_answers_to_cuda_in_torch(monkeypatch):
    monkeypatch.setattr(devices, "platform_is_present", lambda name: True)
    assert target_device("rocm") == torch.device("cuda")


def test_ascend_and_xpu_names_become_architectures():
    assert devices._arch_from_name("npu", "Ascend910B3") == "ascend910b"
    assert devices._arch_from_name("xpu", "Intel(R) Data Center GPU Max 1550") == "pvc"
    assert devices._arch_from_name("xpu", "Intel(R) Arc(TM) B580 Graphics") == "xe2"
