"""What this machine has: devices, torch, the C++ extension, every backend, and how to fix what is missing."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
import shutil
import sys
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from sgl_kernels._version import __version__
from sgl_kernels.core.device import (
    PREFERENCE,
    Device,
    best_platform,
    platform_is_present,
    probe,
    target_device,
    torch_device,
)
from sgl_kernels.core.environment import process, variable
from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.registry import Registry, registry
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.selection.packages import VersionOf, installed_version
from sgl_kernels.core.selection.requires import FLOATS
from sgl_kernels.core.selection.verdict import Reason, Rejected
from sgl_kernels.core.settings import check_files, environment, load_settings
from sgl_kernels.kernels.cpu import loader
from sgl_kernels.kernels.cpu.loader import LIBRARY_VARIABLE
from sgl_kernels.ops import _fingerprint as keys
from sgl_kernels.tools.doctor.child import Outcome, probe_backends
from sgl_kernels.tools.inventory import backend_doc

PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Finding:
    """One backend, or the extension: whether it works here, why not, and the command that changes that."""

    name: str
    status: str  # "ready" | "absent" | "broken" | "elsewhere" (needs another device)
    detail: str = ""
    fix: str = ""
    ops: tuple[str, ...] = ()
    doc: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything `sgl-kernels doctor` says."""

    versions: dict[str, str]
    devices: tuple[str, ...]
    target: str
    extension: Finding
    key_module: Finding
    backends: tuple[Finding, ...]
    plugins: tuple[dict[str, str], ...] = ()
    problems: tuple[str, ...] = field(default=())

    @property
    def is_healthy(self) -> bool:
        """Nothing is broken. A package that is merely absent breaks nothing."""
        findings = (self.extension, self.key_module, *self.backends)
        return not (self.plugins or self.problems or any(f.status == "broken" for f in findings))

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as plain data."""
        return {**asdict(self), "healthy": self.is_healthy}


def examine(
    *,
    source: Registry = registry,
    device: Device | None = None,
    environ: Mapping[str, str] | None = None,
    version_of: VersionOf = installed_version,
    probe_vendors: bool = True,
    timeout_s: float = 60.0,
) -> Diagnosis:
    """Look at everything. Vendor packages are imported in a child process only, and only where they fit.

    `device` asks about another machine: then nothing is imported, for nothing could run.
    """
    problems = settings_problems(process() if environ is None else environ)
    here = probe(torch_device(best_platform()))
    target = device or here
    by_backend = {
        name: [i for op in source.ops() for i in source.implementations(op) if i.backend == name]
        for name in source.backends()
    }
    static = {name: _static(found, target, version_of) for name, found in by_backend.items()}
    fitting = [name for name, rejected in static.items() if rejected is None]
    outcomes = probe_backends(fitting, timeout_s) if probe_vendors and device is None else {}
    return Diagnosis(
        versions=versions(),
        devices=tuple(devices()),
        target=str(target),
        extension=extension(),
        key_module=key_module(),
        backends=tuple(
            _finding(name, found, static[name], outcomes.get(name)) for name, found in by_backend.items()
        ),
        plugins=tuple({"source": f.source, "error": f.error} for f in source.failures),
        problems=tuple(problems),
    )


def versions() -> dict[str, str]:
    """The versions that matter to a bug report."""
    found = {
        "sgl_kernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    if torch.version.hip:
        found["rocm"] = torch.version.hip
    for name in ("triton", "diffusers", "transformers"):
        version = installed_version(name)
        if version is not None:
            found[name] = str(version)
    return found


def devices() -> list[str]:
    """Every device torch can use here, the CPU last."""
    found = []
    for name in PREFERENCE:
        if not platform_is_present(name):
            continue
        kind = torch_device(name).type
        count = 1 if kind in ("cpu", "mps") else torch.get_device_module(kind).device_count()
        found += [
            str(probe(torch.device(kind, i) if count > 1 else torch.device(kind))) for i in range(count)
        ]
    return found


def extension() -> Finding:
    """Our C++ extension: built, at which instruction set, or the command that builds it."""
    reason = loader.load()
    if reason is None:
        level = str(torch.ops.sgl_kernels_cpu.isa_level())
        path = loader.library_path()
        return Finding(
            "C++ extension", "ready", f"instruction set {level}, {path.name if path else 'loaded'}"
        )
    status = "absent" if loader.library_path() is None else "broken"
    return Finding("C++ extension", status, f"{reason}; torch serves its calls", extension_fix())


def key_module() -> Finding:
    """The C++ module that tells calls apart, or what calls cost without it."""
    if keys.compiled is not None:
        return Finding("C++ keys", "ready", "calls are told apart in C++")
    built = next(iter(PACKAGE.glob("_key.*so")), None)
    said = loader.why_not_built("_key") or (
        "it was not built" if built is None else f"{built.name} does not load"
    )
    fix = extension_fix() if built is None else ""
    return Finding("C++ keys", "absent", f"{said}; each call costs about 1 us more", fix)


def extension_fix() -> str:
    """What builds the extension: the command, with the sources this package came from where they are still there."""
    if variable(LIBRARY_VARIABLE):
        return f"unset {LIBRARY_VARIABLE}, or name a library that works"
    install = f"{_python()} -m pip install --no-deps --force-reinstall --no-cache-dir"
    compiler = shlex.split(variable("CXX") or "g++")[:1]
    needs = (
        "" if compiler and shutil.which(compiler[0]) else "install a C++20 compiler (g++ 11 or newer), then: "
    )
    root = PACKAGE.parent
    if _has_sources(root):
        return f"{needs}{_python()} -m pip install --no-deps -e {shlex.quote(str(root))}"
    source = _installed_from()
    if source is not None:
        return f"{needs}{install} {shlex.quote(str(source))}"
    return f"{needs}in a checkout of sgl_kernels, or with its sdist in place of the dot: {install} ."


def _has_sources(folder: Path) -> bool:
    return (folder / "setup.py").is_file() and any((folder / "csrc" / "cpu").glob("*.cpp"))


def _installed_from() -> Path | None:
    """The folder or the sdist that pip installed this package from (PEP 610), if it can be built from again."""
    try:
        record = importlib.metadata.distribution("sgl_kernels").read_text("direct_url.json")
        address = urllib.parse.urlsplit(json.loads(record or "{}").get("url", ""))
    except (importlib.metadata.PackageNotFoundError, ValueError, AttributeError):
        return None
    path = Path(urllib.request.url2pathname(address.path))
    if address.scheme != "file" or not path.exists():
        return None
    return path if _has_sources(path) or path.name.endswith(".tar.gz") else None


def _python() -> str:
    return sys.executable or "python"


def settings_problems(environ: Mapping[str, str]) -> list[str]:
    """What is wrong with the environment and the configuration file; empty when nothing is."""
    problems = []
    try:
        settings = load_settings(dict(environ))
        check_files(settings)
        target_device(settings.target_device)
    except ConfigError as error:
        problems.append(str(error))
    problems += [
        f"{name} is not a variable of sgl_kernels{near}" for name, near in environment.unknown(environ)
    ]
    return problems


def _static(found: list[Implementation], device: Device, version_of: VersionOf) -> Rejected | None:
    """Why none of a backend's implementations fits the device and the packages, or None."""
    first: Rejected | None = None
    for implementation in found:
        wanted = implementation.requires.dtypes or FLOATS
        dtype = next((d for d in (torch.bfloat16, torch.float32) if d in wanted), next(iter(wanted)))
        rejected = implementation.requires.rejects(dtype, device, version_of)
        if rejected is None and implementation.absent is not None and (reason := implementation.absent()):
            rejected = Rejected(Reason.LOAD, reason, extension_fix())
        if rejected is None:
            return None
        first = first or rejected
    return first


def _finding(
    name: str, found: list[Implementation], rejected: Rejected | None, outcome: Outcome | None
) -> Finding:
    ops = tuple(i.op for i in found)
    doc = backend_doc(found)
    if rejected is not None:
        status = "elsewhere" if rejected.reason.value in ("platform", "capability") else "absent"
        if rejected.reason is Reason.LOAD:
            status = extension().status
        detail = rejected.detail.replace("the tensor is on", "this device is")
        return Finding(name, status, detail, rejected.hint, ops, doc)
    if outcome is None or outcome.works:
        return Finding(name, "ready", outcome.detail if outcome else "", "", ops, doc)
    status = "absent" if outcome.is_absent else "broken"
    return Finding(name, status, outcome.detail, outcome.fix, ops, doc)
