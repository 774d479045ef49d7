"""The process of one step: python -m benchmarks.gpu.child MODULE STEP FILE [options]; `probe` prints the machine."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path


def main() -> None:
    """Run one step's module, or print what the machine is."""
    from benchmarks.gpu.task import Task, add_options

    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("step")
    parser.add_argument("path", type=Path)
    add_options(parser)
    options = parser.parse_args()
    if options.module == "probe":
        json.dump(_about(options.device), sys.stdout)
        return
    task = Task(options.step, options.path, options)
    importlib.import_module(f"benchmarks.gpu.steps.{options.module}").run(task)


def _about(device: str) -> dict[str, object]:
    import torch

    from sgl_kernels.tools.bench.results import describe_machine, machine_slug
    from sgl_kernels.tools.doctor.diagnosis import versions

    torch.zeros(1, device=device)  # an absent device is an error here, before any step
    machine = describe_machine(torch.device(device))
    return {"machine": machine, "versions": versions(), "slug": machine_slug(machine)}


if __name__ == "__main__":
    main()
