"""The benchmark grid on the device, what a call costs, and whether `auto` takes the best backend that is here."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.plan import write
from benchmarks.gpu.steps.present import DOWNLOADS, present
from benchmarks.gpu.task import Task
from benchmarks.pages.gpu import auto_against_best
from sgl_kernels.core.device import probe
from sgl_kernels.core.dispatch import Dispatcher
from sgl_kernels.core.op import Case, Op
from sgl_kernels.core.settings import Settings
from sgl_kernels.tools.bench import dispatch as bench_dispatch
from sgl_kernels.tools.bench import measure as bench
from sgl_kernels.tools.bench import results as bench_results
from sgl_kernels.tools.bench.ceilings import Ceilings, measure_ceilings
from sgl_kernels.tools.bench.clock import clock_of, retain_memory

IDENTITY = ("op", "case", "dtype")


def run(task: Task) -> None:
    """The step called `dispatch`, or the one called `bench`."""
    (_dispatch if task.name == "dispatch" else _bench)(task)


def _dispatch(task: Task) -> None:
    data = bench_dispatch.measure(rounds=15 if task.options.tag == "smoke" else 200, device=task.device)
    folder = task.results / bench_results.machine_slug(data["machine"])
    write(folder / "dispatch.json", data)
    task.data = {mode: found["overhead"] for mode, found in data["modes"].items()}
    task.done([])


def _bench(task: Task) -> None:
    retain_memory()
    here, absent = present(task)
    names = tuple(op.name for op in task.ops())
    work = list(bench.workloads(ops=names, tag=task.tag("bench")))
    budget = min(6.0, 4 * task.options.seconds)
    ceilings = measure_ceilings(task.device, budget, clock_of("wall", task.device, torch.get_num_threads()))
    options = bench.Options(rounds=9, seconds=task.options.seconds)
    settings = {"clock": "wall", "rounds": options.rounds, "seconds": options.seconds, "compile": False}
    machine = bench_results.describe_machine(task.device)
    folder = task.results / bench_results.machine_slug(machine)
    measured = _today(folder, task) if task.options.resume else set()
    auto: list[dict[str, Any]] = [] if not measured else _kept(folder)
    problems: list[str] = []
    task.data = {"backends": sorted(here), "absent": absent, "skipped": {}, "auto": auto}
    for op, case, dtype in work:
        key = (op.name, case.name, str(dtype).removeprefix("torch."))
        if key in measured:
            continue
        try:
            row = bench.measure(op, case, dtype, device=task.device, ceilings=ceilings, options=options,
                                backends=tuple(b for b in here if b not in DOWNLOADS))  # fmt: skip
        except torch.OutOfMemoryError:
            task.data["skipped"]["/".join(key)] = "out of memory"
            torch.get_device_module(task.device.type).empty_cache()
            continue
        problems += [
            f"{'/'.join(key)} on {b}: {why}" for b, why in row["skipped"].items() if why.startswith("FAILED")
        ]
        _save(folder, row, ceilings, task, settings)
        auto[:] = [a for a in auto if tuple(a[k] for k in IDENTITY) != key]
        auto.append(
            {
                **dict(zip(IDENTITY, key, strict=True)),
                **auto_against_best(row, _chosen(op, case, dtype, task)),
            }
        )
        task.keep()
    task.done(problems)


def _chosen(op: Op, case: Case, dtype: torch.dtype, task: Task) -> str:
    """What the default settings of a process choose for a case, with no preference and no tuning table."""
    where = probe(task.device)
    facts = op.facts(*op.place(op.canonical(*case.make(task.device, dtype, 0)), where))
    return Dispatcher(Settings()).decide(op, None, facts, where).chosen


def _save(
    folder: Path, row: dict[str, Any], ceilings: Ceilings, task: Task, settings: dict[str, Any]
) -> None:
    """Add a row to the file of its family at once: what is measured is never lost."""
    document = bench_results.document([row], [ceilings], task.device, settings)
    for family, part in bench_results.split_by_family(document).items():
        bench_results.save(folder / f"{family}.json", part)


def _today(folder: Path, task: Task) -> set[tuple[str, str, str]]:
    """The cases that were measured today."""
    today = datetime.date.today().isoformat()
    return {
        tuple(row[k] for k in IDENTITY)
        for path in folder.glob("*.json")
        if bench_results.is_result(path)
        for row in bench_results.load(path)["results"]
        if row.get("date") == today
    }  # type: ignore[return-value]


def _kept(folder: Path) -> list[dict[str, Any]]:
    from benchmarks.gpu.plan import BY_NAME, read, result_file

    found: list[dict[str, Any]] = read(result_file(folder, BY_NAME["bench"])).get("data", {}).get("auto", [])
    return found
