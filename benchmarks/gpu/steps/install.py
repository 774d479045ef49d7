"""The vendors' wheels that fit the device. None is needed: what cannot be had is a reason, not a failure."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.task import Task, environment
from sgl_kernels.core.selection.packages import missing

PATIENCE = 240  # seconds for one package: a source build of flash-attn takes hours


@dataclass(frozen=True, slots=True)
class Vendor:
    """A package that a backend needs."""

    requirement: str
    module: str  # imported afterwards: an installed wheel of another CUDA or torch release fails there
    archs: tuple[str, ...] = ()
    pre: bool = False
    source: bool = False  # PyPI has a source release whose set-up fetches a wheel that fits; no compiling


CUDA = (
    Vendor("triton>=3.4", "triton"),
    Vendor("sageattention>=1.0.6", "sageattention", ("sm80", "sm86", "sm89", "sm90", "sm120", "sm121")),
    Vendor("flashinfer-python>=0.4", "flashinfer"),
    Vendor("xformers>=0.0.28", "xformers.ops"),
    Vendor(
        "flash-attn>=2.8,<3", "flash_attn", ("sm80", "sm86", "sm89", "sm90", "sm100", "sm120"), source=True
    ),
    Vendor("flash-attn-4", "flash_attn.cute", ("sm90", "sm100", "sm103", "sm110"), pre=True),
)
BY_PLATFORM: dict[str, tuple[Vendor, ...]] = {
    "cuda": CUDA,
    "rocm": (
        Vendor("triton>=3.4", "triton"),
        Vendor("amd-aiter", "aiter.ops.mha", ("gfx942", "gfx950"), pre=True),
    ),
    "xpu": (Vendor("triton>=3.4", "triton"),),
    "mps": (Vendor("mlx>=0.32", "mlx.core"),),
}


def run(task: Task) -> None:
    """Try each package of the platform once. torch stays as it is."""
    for vendor in BY_PLATFORM.get(task.where.platform, ()):
        task.data[vendor.requirement] = one(vendor, task.where.arch, task.options.wheels)
        task.keep()
    task.done([])


def one(vendor: Vendor, arch: str, wheels: str) -> dict[str, Any]:
    """What became of one package: its version and whether it imports, or why it is not there."""
    if vendor.archs and arch not in vendor.archs:
        return {"status": "not possible", "reason": f"has no kernels for {arch or 'this device'}"}
    status = "present"
    if missing(vendor.requirement) is not None:
        why = _pip(vendor, wheels)
        if why:
            return {"status": "absent", "reason": why}
        status = "installed"
    name = vendor.requirement.partition(">")[0].partition("<")[0]
    imported = subprocess.run(
        [sys.executable, "-c", f"import {vendor.module}"], capture_output=True, text=True, env=environment(),
        timeout=PATIENCE,
    )  # fmt: skip
    if imported.returncode:
        last = (imported.stderr.strip().splitlines() or ["no message"])[-1]
        return {"status": "broken", "reason": f"import {vendor.module}: {last}", "version": _version(name)}
    return {"status": status, "version": _version(name)}


def _version(name: str) -> str:
    importlib.invalidate_caches()
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _pip(vendor: Vendor, wheels: str) -> str:
    """Install, holding torch and triton where they are; the last line of pip's words where that fails."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        for held in ("torch", "triton", "numpy"):
            if _version(held):
                constraints.write(f"{held}=={_version(held)}\n")
        constraints.flush()
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-c",
                   constraints.name, vendor.requirement]  # fmt: skip
        command += ["--no-index", "--find-links", wheels] if wheels else []
        command += ["--pre"] if vendor.pre else []
        command += ["--no-build-isolation"] if vendor.source else ["--only-binary=:all:"]
        quick = {"FLASH_ATTENTION_FORCE_BUILD": "FALSE", "MAX_JOBS": "1", **os.environ}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=quick)
        except subprocess.TimeoutExpired:
            return f"not installed after {PATIENCE} s: it is being built from source, or the network is slow"
    if done.returncode == 0:
        return ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return (errors or done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"])[-1].strip()
