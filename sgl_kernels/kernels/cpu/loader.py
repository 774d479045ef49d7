"""Finds and loads the C++ extension once, or says why it could not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parents[2]
# Another build of the library in place of the package's own: the sanitizer build of `make asan`, say.
LIBRARY_VARIABLE = "SGL_KERNELS_CPU_LIBRARY"
INTO = (
    "silu_mul", "gelu_tanh", "gelu_mul", "group_norm", "scale_shift", "gate_residual", "rms_norm", "layer_norm",
    "norm_scale_shift", "residual_gate_norm_scale_shift", "apply_rope", "qk_norm_rope",
)  # fmt: skip
OPS = (
    *INTO, *(f"{op}_out" for op in INTO), "attention", "attention_heads_first", "attention_varlen",
    "sage_attention", "linear",
    "linear_unsupported_reason", "nvfp4_level", "nvfp4_quantize", "nvfp4_linear", "nvfp4_decode", "isa_level",
    "set_isa", "peak_gflops",
)  # fmt: skip
"""What the library defines. One without all of them is of other sources, or of none, and serves nothing."""

Said = Callable[[], str | None]


def _nothing() -> None:
    return None


_library: Said = _nothing
_level: Said = _nothing

_lock = threading.Lock()
_outcome: list[str | None] = []  # empty until the first load; then its reason, or None for success


def ask(library: Said, level: Said) -> None:
    """Whom to ask for a library in place of the package's own, and for the level that settings name.

    Nothing here imports sgl_kernels: the build loads what it made by this file alone. Until somebody says whom to ask,
    nothing is said.
    """
    global _library, _level
    _library, _level = library, level


def library_path() -> Path | None:
    """The library file to load, or None where none was built."""
    named = _library()
    if named:
        return Path(named)
    return next(iter(sorted(PACKAGE.glob("_cpu.*so"))), None)


def why_not_built(module: str = "_cpu") -> str:
    """What the build said when it made no `_cpu` or `_key`, in one line; '' where it said nothing."""
    try:
        said = (PACKAGE / f"{module}.not-built.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    # After a failed command come the compiler's lines, of which the first error says most.
    return next((line for line in lines if "error:" in line), lines[0] if lines else "")[:300]


def load() -> str | None:
    """Makes torch.ops.sgl_kernels_cpu usable; the answer is None, or the reason it is not. Thread-safe."""
    if not _outcome:
        with _lock:
            if not _outcome:
                _outcome.append(_load())
    return _outcome[0]


def _load() -> str | None:
    path = library_path()
    if path is None:
        said = why_not_built()
        return f"the C++ extension was not built{': ' if said else ''}{said}"
    if not path.is_file():
        named = f", which {LIBRARY_VARIABLE} names," if _library() else ""
        return f"the C++ extension {path}{named} does not exist"
    reason = open_library(path)
    if reason is None:
        try:
            _hold_down(_level())
        except ValueError as error:  # a level that is none
            reason = f"the C++ extension {path.name} does not load: {str(error).splitlines()[0]}"
    return reason


def open_library(path: Path) -> str | None:
    """Loads one file into torch; the answer is None, or what is wrong with it."""
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return f"the C++ extension {path.name} does not load: {(str(error).splitlines() or ['no reason'])[0]}"
    lacking = [op for op in OPS if not hasattr(torch.ops.sgl_kernels_cpu, op)]
    if len(lacking) == len(OPS):
        return f"the C++ extension {path.name} holds no operation: it was built without its sources"
    if lacking:
        return (
            f"the C++ extension {path.name} was built from other sources: it lacks {', '.join(lacking[:3])}"
        )
    return None


def follow() -> None:
    """The settings name another level: the library takes it on, or is loaded anew where it could not be."""
    with _lock:
        if _outcome and _outcome[0] is None:
            try:
                level = _level()
            except ValueError:
                return  # of an environment that is not read yet: whoever reads it complains
            _hold_down(level, release=True)
        else:
            _outcome.clear()


def _hold_down(level: str | None, release: bool = False) -> None:
    if level is None and not release:
        return  # the library begins with the best that the processor has
    found = torch.ops.sgl_kernels_cpu.set_isa(level or "")
    if level is not None and found != level:
        logging.getLogger("sgl_kernels").warning(
            "SGL_KERNELS_CPU_ISA is %r, which this machine lacks; the kernels run at %r", level, found
        )
