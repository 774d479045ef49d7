"""Devices as values: probe a real one, or invent one to ask about it."""

from __future__ import annotations

import functools
import os
import platform as _platform
import re
from dataclasses import dataclass
from typing import Any

import torch

from sgl_kernels.core import cpu_level
from sgl_kernels.core.names.levels import held_down
from sgl_kernels.core.names.platforms import PLATFORMS as PLATFORMS
from sgl_kernels.core.names.platforms import Platform as Platform

from .errors import ConfigError

PREFERENCE: tuple[str, ...] = ("cuda", "rocm", "xpu", "npu", "musa", "mps", "cpu")
"""The order in which `best_platform` looks; an accelerator always goes before the CPU."""


@dataclass(frozen=True, slots=True)
class Device:
    """A place a kernel can run. A value, so tests may invent one."""

    platform: str
    arch: str = ""  # "sm90", "gfx942", "ascend910b", "m3"; of a CPU the level in force: "avx512bf16"
    capability: tuple[int, int] | None = None  # (major, minor); CUDA and MUSA only
    name: str = ""  # "NVIDIA H200": folder name in the tuning cache
    index: int = 0
    processor: str = ""  # CPU: what the processor has, where settings hold our kernels below it

    def __str__(self) -> str:
        where = f"{self.platform}:{self.arch}" if self.arch else self.platform
        return f"{self.name} ({where})" if self.name else where


@functools.cache
def probe(device: torch.device) -> Device:
    """Describe `device`. Never raises; touches only the device it is given."""
    index = device.index or 0
    try:
        kind = device.type
        if kind == "cpu" or kind == "meta":
            level, processor = cpu_arch(), processor_arch()
            name = _platform.processor() or _platform.machine()
            return Device("cpu", level, None, name, processor="" if processor == level else processor)
        if kind == "cuda":
            return _probe_cuda(device, index)
        if kind == "mps":
            return Device("mps", _apple_arch(), None, "Apple GPU", index)
        module = torch.get_device_module(kind)
        properties = module.get_device_properties(index)
        name = getattr(properties, "name", "")
        if kind == "musa":
            major, minor = module.get_device_capability(index)
            return Device("musa", f"mp_{major}{minor}", (major, minor), name, index)
        return Device(kind, _arch_from_name(kind, name), None, name, index)
    except Exception:  # a probe that raises would take down a call that could run on the torch floor
        return Device(device.type, index=index)


def _probe_cuda(device: torch.device, index: int) -> Device:
    if not torch.cuda.is_available():  # fake tensors name a device that is not there
        return Device("rocm" if torch.version.hip else "cuda", index=index)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        arch = str(properties.gcnArchName).split(":")[0]
        return Device("rocm", arch, None, properties.name, index)
    capability = (properties.major, properties.minor)
    return Device("cuda", f"sm{capability[0]}{capability[1]}", capability, properties.name, index)


@functools.cache
def cpu_arch() -> str:
    """The instruction set in force: what the processor has, held down to the level that settings name.

    Raises ConfigError for a name in the environment that is none.
    """
    return held_down(processor_arch(), cpu_level.named())


def _forget_the_cpu() -> None:
    cpu_arch.cache_clear()
    probe.cache_clear()


cpu_level.follow(_forget_the_cpu)


def processor_arch() -> str:
    """The widest instruction set of this processor: avx512bf16, avx512, avx2, neon or baseline."""
    if _platform.machine().lower() in ("aarch64", "arm64"):
        return "neon"
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities.get("avx512_bf16") and capabilities.get("avx512_vnni", True):
        return "avx512bf16"
    level = torch.backends.cpu.get_cpu_capability().lower()
    return level if level in ("avx512", "avx2") else "baseline"


def _apple_arch() -> str:
    chip = os.uname().machine if hasattr(os, "uname") else ""
    match = re.search(r"\bM(\d)", _platform.processor() + chip)
    return f"m{match.group(1)}" if match else ""


def _arch_from_name(kind: str, name: str) -> str:
    """'Ascend910B3' -> 'ascend910b'; Intel names keep their family word."""
    lowered = name.lower().replace(" ", "")
    if kind == "npu":
        match = re.match(r"(ascend\d+[a-z]?)", lowered)
        return match.group(1) if match else lowered
    if kind == "xpu":
        if "max" in lowered or "1550" in lowered or "1100" in lowered:
            return "pvc"
        return "xe2" if re.search(r"b\d{3}", lowered) else "xe"
    return lowered


def parse_device(text: str) -> Device:
    """Read 'cuda:sm90', 'rocm:gfx942', 'npu:ascend910b', 'mps:m3', 'cpu:avx512', or a bare platform.

    Raises ConfigError when the platform is not one of the seven.
    """
    platform, _, arch = text.strip().lower().partition(":")
    if platform not in PLATFORMS:
        raise ConfigError(
            f"device is {text!r}; expected one of {', '.join(PLATFORMS)}, with an architecture after a colon "
            "if wanted, such as cuda:sm90, rocm:gfx942 or cpu:avx512"
        )
    if platform in ("cuda", "musa") and arch:
        match = re.fullmatch(r"(?:sm_?|mp_)?(\d{1,2})(\d)[a-z]?", arch)
        if match is None:
            raise ConfigError(f"device is {text!r}; the architecture of {platform} looks like sm90 or sm120")
        capability = (int(match.group(1)), int(match.group(2)))
        prefix = "sm" if platform == "cuda" else "mp_"
        return Device(platform, f"{prefix}{capability[0]}{capability[1]}", capability)
    return Device(platform, arch)


def platform_is_present(platform: str) -> bool:
    """Whether torch can put a tensor on this platform here and now. Never raises."""
    try:
        if platform == "cpu":
            return True
        if platform in ("cuda", "rocm"):
            hip = torch.version.hip is not None
            return torch.cuda.is_available() and hip == (platform == "rocm")
        if platform == "mps":
            return torch.backends.mps.is_available()
        return bool(torch.get_device_module(platform).is_available())
    except Exception:  # torch raises several kinds for a device module it does not have
        return False


def best_platform() -> str:
    """The first platform of `PREFERENCE` that is present."""
    return next(name for name in PREFERENCE if platform_is_present(name))


def torch_device(platform: str) -> torch.device:
    """The torch device of a platform: ROCm answers to torch's 'cuda'."""
    return torch.device("cuda" if platform == "rocm" else platform)


def target_device(target: str | None) -> torch.device:
    """The device that tools and integrations aim at: `target`, or the best platform present.

    Raises ConfigError if `target` names a platform that is not present.
    """
    if target is None:
        return torch_device(best_platform())
    device = parse_device(target)
    if not platform_is_present(device.platform):
        present = [name for name in PREFERENCE if platform_is_present(name)]
        raise ConfigError(
            f"SGLANG_DIFFUSION_TARGET_DEVICE is {target!r}, which this machine does not have; present: "
            f"{', '.join(present)}. Unset it, or name one of these"
        )
    return torch_device(device.platform)
