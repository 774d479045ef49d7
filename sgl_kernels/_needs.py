"""What must be installed before anything works, asked with nothing but Python: torch first, and the small packages."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator

OLDEST_TORCH = (2, 10)
PACKAGES = {
    # distribution -> its module and the oldest release that will do; the list of pyproject.toml
    "torch": ("torch", "2.10"),
    "packaging": ("packaging", "23"),
    "pydantic": ("pydantic", "2.6"),
    "pyyaml": ("yaml", "6"),
    "rich": ("rich", "13"),
    "safetensors": ("safetensors", "0.4.3"),
    "typer": ("typer", "0.12"),
}
COMMAND_LINE = ("packaging", "rich", "typer")  # what every command needs; the others are needed by some


def torch_problem() -> str:
    """Why torch cannot be used here, and what to do; '' when it can. Imports torch."""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name == "torch":
            return "torch is not installed; install it: pip install 'torch>=2.10'"
        return f"torch cannot be imported: {error}; install it anew: pip install --force-reinstall torch"
    except (
        Exception
    ) as error:  # a broken torch raises anything: missing libraries, another NumPy, half an upgrade
        lines = str(error).strip().splitlines() or ["it gave no reason"]
        return (
            f"torch cannot be imported: {type(error).__name__}: {lines[0]}; install it anew: pip install "
            "--force-reinstall torch"
        )
    version = getattr(torch, "__version__", None)
    if version is None:
        where = getattr(torch, "__file__", None) or next(
            iter(getattr(torch, "__path__", ())), "an unknown place"
        )
        return (
            f"what Python finds as torch, in {where}, is not PyTorch; if it is yours rename it, if it is left of an "
            "installation delete it and run pip install --force-reinstall torch"
        )
    if _numbers(str(version)) < OLDEST_TORCH:
        return f"torch is {version}, and 2.10 is the oldest that will do: pip install 'torch>=2.10'"
    return ""


def missing(names: tuple[str, ...] = tuple(PACKAGES)) -> Iterator[tuple[str, str]]:
    """The packages that are not here or too old, each with a sentence. Imports none of them, and asks torch not."""
    for name in names:
        module, oldest = PACKAGES[name]
        if name == "torch":
            continue
        wanted = f"pip install '{name}>={oldest}'"
        try:
            found = importlib.util.find_spec(module) is not None
        except (ImportError, ValueError):
            found = False
        if not found:
            yield name, f"{name} is not installed; install it: {wanted}"
            continue
        version = version_of(name)
        if version and _numbers(version) < _numbers(oldest):
            yield name, f"{name} is {version}, and {oldest} is the oldest that will do: {wanted}"


def version_of(distribution: str) -> str:
    """The version that is installed; '' when none is, or when it left no metadata."""
    try:
        return importlib.metadata.version(distribution) or ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    """'2.10.0a0+git' as (2, 10): enough to compare with a release."""
    head = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in head.group().split(".")[:2]) if head else ()
