"""The command line where torch, or what draws its tables, cannot be imported: it says what is missing and no more."""

from __future__ import annotations

import json
import platform
import sys

from sgl_kernels import _needs
from sgl_kernels._version import __version__

HELP = """Usage: sgl-kernels [OPTIONS] COMMAND [ARGS]...

One kernel layer for torch: what runs where, why, how right and how fast.

Only these work until what is missing is there:
  doctor [--json]   what is missing, and the command that fixes it
  --version         print the version
  --help            show this message
"""


def run(arguments: list[str], problems: list[str]) -> int:
    """What a command answers when `problems` stand in the way. Gives its exit code."""
    words = [a for a in arguments if a != "--debug"]
    if words[:1] == ["--version"]:
        print(f"sgl_kernels {__version__}")
        return 0
    if words[:1] == ["doctor"] and not {"-h", "--help"} & set(words):
        return _doctor("--json" in words, problems)
    if not words or {"-h", "--help"} & set(words):
        print(HELP)
        print("\n".join(f"missing: {problem}" for problem in problems))
        return 0
    print("\n".join(f"error: {problem}" for problem in problems), file=sys.stderr)
    print("`sgl-kernels doctor` says what is missing.", file=sys.stderr)
    return 2


def _doctor(as_json: bool, problems: list[str]) -> int:
    """The part of `doctor` that needs nothing; the keys of its JSON are the same."""
    others = [text for _, text in _needs.missing() if text not in problems]
    versions = {
        "sgl_kernels": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **{name: _needs.version_of(name) or "missing" for name in _needs.PACKAGES},
    }
    if as_json:
        blank = {"status": "absent", "detail": "not looked at", "fix": "", "ops": [], "doc": ""}
        data: dict[str, object] = {"versions": versions, "devices": [], "target": "", "backends": []}
        data |= {"extension": {"name": "C++ extension", **blank}, "key_module": {"name": "C++ keys", **blank}}
        print(
            json.dumps({**data, "plugins": [], "problems": [*problems, *others], "healthy": False}, indent=2)
        )
        return 1
    print("\n".join(f"{name:<14}{version}" for name, version in versions.items()))
    for problem in (*problems, *others):
        print(f"missing: {problem}")
    print("Devices, the C++ extension and the backends can be looked at when this is mended.")
    return 1
