"""What a step is given: the device, the sizes, and a place to put down what it has so far."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.plan import FAILED, RAN, read, write
from sgl_kernels.core.device import Device, probe
from sgl_kernels.core.op import Case, Op
from sgl_kernels.core.registry import registry


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that reach the steps."""
    parser.add_argument("--device", default="cuda", help="torch device: cuda (ROCm too), xpu, npu, mps, cpu")
    parser.add_argument(
        "--root", type=Path, default=Path("."), help="checkout whose results and docs are written"
    )
    parser.add_argument("--ops", default="", help="only these ops, a comma list")
    parser.add_argument("--tag", default="", help="cases by tag instead of each step's own: smoke is tiny")
    parser.add_argument(
        "--wheels", default="", help="folder of carried wheels; packages come from there alone"
    )
    parser.add_argument(
        "--backend", default="", help="only this backend: how a step isolates one from the next"
    )
    parser.add_argument("--isolate", action="store_true", help="one process for each backend, on the CPU too")
    parser.add_argument("--seconds", type=float, default=1.5, help="budget of one benchmark case")
    parser.add_argument(
        "--resume", action="store_true", help="skip what ran already, today and with this torch"
    )


@dataclass
class Task:
    """One step at work."""

    name: str
    path: Path
    options: argparse.Namespace
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return torch.device(self.options.device)

    @property
    def where(self) -> Device:
        return probe(self.device)

    @property
    def results(self) -> Path:
        return Path(self.options.root) / "benchmarks" / "results"

    def ops(self) -> list[Op]:
        """The ops that were asked for, all by default."""
        names = [n for n in self.options.ops.split(",") if n] or list(registry.ops())
        return [registry.op(name) for name in names]

    def tag(self, default: str) -> str:
        return self.options.tag or default

    def smoke(self, op: Op) -> tuple[Case, torch.dtype]:
        """One small case of an op, in a half type where it has one."""
        cases = [c for c in op.cases() if "smoke" in c.tags] or list(op.cases())
        case = cases[0]
        half = [d for d in case.dtypes if d in (torch.bfloat16, torch.float16)]
        return case, (half or list(case.dtypes))[0]

    def keep(
        self, status: str = FAILED, reason: str = "ended early; what was done until then is kept"
    ) -> None:
        """Put down what is known so far. Without a status the step counts as not finished."""
        write(self.path, {"status": status, "reason": reason, "data": self.data})

    def done(self, problems: list[str]) -> None:
        """The end: right, or what was wrong."""
        self.data["problems"] = problems
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        self.keep(FAILED if problems else RAN, problems[0] + more if problems else "")

    def each_backend(self, backends: Sequence[str], work: Callable[[str], None]) -> None:
        """`work` for each backend, which adds its part to `data[backend]`; each in a process of its own.

        After one illegal access a CUDA context answers every call with that error: no backend may spoil the next.
        On the CPU there is nothing to spoil, and a process costs seconds.
        """
        if self.options.backend:
            work(self.options.backend)
            self.keep(RAN, "")
            sys.exit(0)
        for backend in backends:
            if self.device.type == "cpu" and not self.options.isolate:
                work(backend)
            else:
                self.data[backend] = self._alone(backend)
            self.keep()

    def _alone(self, backend: str) -> dict[str, Any]:
        path = self.path.with_name(f"{self.path.name}.{backend}")
        module = f"benchmarks.gpu.steps.{self.name}"
        command = [
            sys.executable,
            "-m",
            "benchmarks.gpu.child",
            self.name,
            self.name,
            str(path),
            *self._same(),
        ]
        done = subprocess.run(
            [*command, f"--backend={backend}"], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace",
        )  # fmt: skip
        found = read(path)
        path.unlink(missing_ok=True)
        data: dict[str, Any] = found.get("data", {}).get(backend, {})
        if done.returncode:
            last = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "no output")
            data["crashed"] = f"{module} ended with status {done.returncode}: {last.strip()}"
        return data

    def _same(self) -> list[str]:
        names = ("device", "root", "ops", "tag", "wheels", "seconds")
        return [f"--{name}={getattr(self.options, name)}" for name in names]

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type != "cpu":
            torch.get_device_module(self.device.type).synchronize()


def environment(**more: str) -> dict[str, str]:
    """The environment of a process that a step starts, with the checkout on the path."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, "PYTHONPATH": path, **more}
