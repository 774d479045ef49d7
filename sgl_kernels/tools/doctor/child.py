"""Loads backends in a child process, so that a package which crashes or hangs costs one line of a report."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from sgl_kernels.core.environment import process

MARK = "@sgl_kernels "  # vendors print at import: only lines that start so are ours
START_S = 120.0  # for the interpreter and torch; a cold disk can take a minute


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of loading one backend."""

    works: bool
    detail: str = ""
    fix: str = ""
    is_absent: bool = False  # nothing is broken; something is not there


def probe_backends(names: Sequence[str], timeout_s: float = 60.0) -> dict[str, Outcome]:
    """Load every implementation of `names` in a child. One that dies or hangs is skipped by a fresh child.

    `timeout_s` is for each backend.
    """
    outcomes: dict[str, Outcome] = {}
    while waiting := [name for name in names if name not in outcomes]:
        outcomes |= _one_child(waiting, timeout_s)
    return outcomes


def _one_child(names: Sequence[str], timeout_s: float) -> dict[str, Outcome]:
    """Outcomes until the child ends; at least one, so that the caller's loop does."""
    command = [sys.executable, "-m", "sgl_kernels.tools.doctor.child", *names]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=_environment(),
    )
    lines: queue.Queue[str | None] = queue.Queue()
    errors: list[str] = []
    threads = [
        threading.Thread(target=_forward, args=(child, lines), daemon=True),
        threading.Thread(target=lambda: errors.extend(child.stderr or ()), daemon=True),
    ]
    for thread in threads:
        thread.start()
    outcomes: dict[str, Outcome] = {}
    current = names[0]
    hung = False
    patience = START_S
    while True:
        try:
            line = lines.get(timeout=patience)
        except queue.Empty:
            hung = True
            child.kill()
            break
        if line is None:
            break
        patience = timeout_s
        message = json.loads(line)
        current = message["backend"]
        if "works" in message:
            outcomes[current] = Outcome(
                message["works"], message["detail"], message["fix"], message["is_absent"]
            )
    code = child.wait()
    threads[1].join(timeout=5)
    if current not in outcomes:
        outcomes[current] = Outcome(False, _death(code, hung, timeout_s, errors))
    return outcomes


def _environment() -> dict[str, str]:
    """The child's environment: an unusable setting is reported by doctor itself, not by every backend."""
    hidden = ("SGLANG_DIFFUSION_ATTENTION_BACKEND", "SGLANG_DIFFUSION_ATTENTION_CONFIG")
    return {k: v for k, v in process().items() if k not in hidden}


def _forward(child: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    for line in child.stdout or ():
        if line.startswith(MARK):
            lines.put(line.removeprefix(MARK))
    lines.put(None)


def _death(code: int, hung: bool, timeout_s: float, errors: list[str]) -> str:
    if hung:
        return f"loading it took longer than {timeout_s:g} s; it was ended"
    last = next((line.strip() for line in reversed(errors) if line.strip()), "")
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"loading it crashed the process ({name})" + (f": {last}" if last else "")
    return f"loading it ended the process (exit code {code})" + (f": {last}" if last else "")


def main(names: Sequence[str]) -> None:
    """The child: load each backend, saying before and after which one it is."""
    import sgl_kernels  # noqa: F401 - defines the ops
    from sgl_kernels.core.registry import registry
    from sgl_kernels.core.selection.verdict import Rejected

    def say(**message: object) -> None:
        print(f"\n{MARK}{json.dumps(message)}", flush=True)

    for name in names:
        say(backend=name)
        failed: dict[str, Rejected] = {}
        loaded = 0
        for op in registry.ops():
            for implementation in registry.implementations(op):
                if implementation.backend != name:
                    continue
                found = registry.loaded(implementation, None)
                if isinstance(found, Rejected):
                    failed[op] = found
                else:
                    loaded += 1
        first = next(iter(failed.values()), None)
        detail = "" if first is None else first.detail
        if failed and loaded:
            detail = f"{', '.join(failed)}: {detail}"
        absent = first is not None and first.detail.startswith("ModuleNotFoundError")
        say(
            backend=name,
            works=not failed,
            detail=detail,
            fix="" if first is None else first.hint,
            is_absent=absent,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
