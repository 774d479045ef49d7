"""Time a case on every backend that takes it, next to torch, and judge the answers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgl_kernels.core.device import probe
from sgl_kernels.core.op import Case, Cost, Op
from sgl_kernels.core.registry import Registry, registry
from sgl_kernels.core.selection.implementation import Fidelity, Implementation
from sgl_kernels.core.selection.packages import installed_version
from sgl_kernels.core.selection.verdict import Rejected
from sgl_kernels.tools.bench.ceilings import Ceilings
from sgl_kernels.tools.bench.clock import Timing, beyond_caches_mib, clock_of, interleave
from sgl_kernels.tools.bench.oracle import Oracle
from sgl_kernels.tools.bench.plain_torch import spelling
from sgl_kernels.tools.parity.cell import FLOOR, verdict

EAGER, COMPILED = "torch eager", "torch.compile"
COLD, EXACT = "cold", Fidelity.EXACT.value
"""The tag of a case whose inputs come from memory: they rotate through copies that no cache holds."""
INTO = " (out=)"  # the same backend, writing into a tensor that is there already
MAX_COPIES = 64


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure."""

    rounds: int = 15
    seconds: float = 3.0  # for all candidates of one case together
    clock: str = "wall"
    cold_mib: int = 0  # rotate the inputs of every case through copies that take at least this much
    compile: bool = False
    check: bool = True  # compare with the definition in float64


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that serves a case: a bound backend, or plain torch."""

    name: str
    run: Callable[..., Any]
    fidelity: str = EXACT


def workloads(
    source: Registry = registry,
    *,
    ops: Sequence[str] = (),
    tag: str = "bench",
    dtypes: Sequence[torch.dtype] = (),
    matches: Callable[[str], bool] = lambda name: True,
) -> Iterator[tuple[Op, Case, torch.dtype]]:
    """Every (op, case, dtype) to measure."""
    for op in source.ops().values():
        if ops and op.name not in ops:
            continue
        for case in op.cases():
            if tag in case.tags and matches(case.name):
                for dtype in case.dtypes:
                    if not dtypes or dtype in dtypes:
                        yield op, case, dtype


def candidates(
    op: Op, case: Case, args: tuple[Any, ...], backends: Sequence[str], options: Options, source: Registry
) -> tuple[list[Candidate], dict[str, str]]:
    """Who serves the arguments, and a reason for each backend that does not."""
    device = probe(args[0].device)
    found: list[Candidate] = []
    skipped: dict[str, str] = {}
    for implementation in source.implementations(op.name):
        name = implementation.backend
        wanted = not backends or name in backends
        if name != FLOOR and (not wanted or (case.backends is not None and name not in case.backends)):
            continue
        rejected = verdict(op, implementation, args, device, installed_version)
        run = rejected if rejected is not None else _load(op, implementation, args, source)
        if isinstance(run, Rejected):
            skipped[name] = f"{run.reason.value}: {run.detail}"
        else:
            found.append(Candidate(name, run, implementation.fidelity.value))
            if implementation.load_out is not None:
                filled = _into_kept(run, implementation.load_out(None))
                found.append(Candidate(f"{name}{INTO}", filled, implementation.fidelity.value))
    plain = spelling(op.name, args)
    if plain is not None:
        found.append(Candidate(EAGER, plain))
        if options.compile:
            try:
                compiled = torch.compile(plain, dynamic=False)
                compiled(*args)
                found.append(Candidate(COMPILED, compiled))
            except Exception as error:  # no compiler, or a graph it cannot take: a reason, not a crash
                skipped[COMPILED] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return found, skipped


def _into_kept(run: Callable[..., Any], run_into: Callable[..., Any]) -> Callable[..., Any]:
    """The call with `out=`: into tensors that are made once, at the first call, and kept."""
    kept: list[tuple[Tensor, ...]] = []

    def filled(*args: Any) -> Any:
        if not kept:
            first = run(*args)
            kept.append(first if isinstance(first, tuple) else (first,))
        return run_into(*args, out=kept[0])

    return filled


def _load(op: Op, implementation: Implementation, args: tuple[Any, ...], source: Registry) -> Any:
    config = None
    if implementation.configs is not None:
        config = implementation.configs(op.facts(*args), probe(args[0].device))[0]
    return source.loaded(implementation, config)


def measure(
    op: Op,
    case: Case,
    dtype: torch.dtype,
    *,
    device: torch.device,
    ceilings: Ceilings,
    backends: Sequence[str] = (),
    options: Options = Options(),
    source: Registry = registry,
) -> dict[str, Any]:
    """One row of a result file: every candidate of one case, measured in turns."""
    where = probe(device)
    first = op.place(op.canonical(*case.make(device, dtype, 0)), where)
    cost = op.cost(*first)
    with torch.inference_mode():
        found, skipped = candidates(op, case, first, backends, options, source)
        copies = _copies(cost, options.cold_mib or (beyond_caches_mib() if COLD in case.tags else 0))
        sets = [
            first,
            *(op.place(op.canonical(*case.make(device, dtype, seed)), where) for seed in range(1, copies)),
        ]
        errors, took = _first_calls(op, first, found, skipped, options)
        found = [c for c in found if c.name not in skipped]
        calls = {c.name: [_call(c.run, args) for args in sets] for c in found}
        clock = clock_of(options.clock, device, torch.get_num_threads())
        times = interleave(
            calls, device=device, rounds=options.rounds, budget_s=options.seconds, clock=clock, took=took
        )
    bound, roof = roofline(cost, dtype, ceilings, copies)
    lossy = lossy_roof(cost, dtype, ceilings, copies)
    return {
        "op": op.name,
        "family": op.family,
        "case": case.name,
        "note": case.note,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "tensors": ["x".join(map(str, a.shape)) for a in first if isinstance(a, Tensor)],
        "flops": cost.flops,
        "bytes": cost.bytes,
        "bound": bound,
        "copies": copies,
        "clock": options.clock,
        "candidates": [
            _row(c, times, cost, bound, roof if c.fidelity == EXACT else lossy, errors.get(c.name))
            for c in found
        ],
        "skipped": skipped,
    }


def _call(run: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], Any]:
    return lambda: run(*args)


def _copies(cost: Cost, cold_mib: int) -> int:
    if not cold_mib:
        return 1
    return max(1, min(MAX_COPIES, math.ceil((cold_mib << 20) / max(1, cost.bytes))))


def _first_calls(
    op: Op, args: tuple[Any, ...], found: list[Candidate], skipped: dict[str, str], options: Options
) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """The error of each candidate, and the seconds of its first call; one that raises moves to `skipped`."""
    oracle = Oracle(op, args) if options.check else None
    errors, took = {}, {}
    for candidate in found:
        start = time.perf_counter()
        try:
            out = candidate.run(*args)
        except Exception as error:  # a backend that accepted the call and fails is a finding, not the end
            skipped[candidate.name] = (
                f"FAILED: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            )
            continue
        took[candidate.name] = time.perf_counter() - start
        if oracle is not None:
            errors[candidate.name] = oracle.judge(out).to_dict()
    return errors, took


def roofline(cost: Cost, dtype: torch.dtype, ceilings: Ceilings, copies: int = 1) -> tuple[str, float]:
    """('flops' | 'bytes', the least seconds this machine needs): whichever of the two takes longer.

    Inputs that rotate through `copies` come from where that many fit, so the bandwidth is that of all of them.
    """
    moving = cost.bytes / (ceilings.bandwidth(cost.bytes * copies) * 1e9)
    computing = cost.flops / (ceilings.arithmetic(dtype) * 1e9)
    return ("flops", computing) if computing >= moving else ("bytes", moving)


def lossy_roof(cost: Cost, dtype: torch.dtype, ceilings: Ceilings, copies: int = 1) -> float:
    """The least seconds of a lossy candidate, which may compute in bytes where those are faster."""
    rate = max(ceilings.gflops.get("int8", 0.0), ceilings.arithmetic(dtype))
    return max(cost.flops / (rate * 1e9), cost.bytes / (ceilings.bandwidth(cost.bytes * copies) * 1e9))


def _row(
    candidate: Candidate,
    times: dict[str, Timing],
    cost: Cost,
    bound: str,
    roof: float,
    error: dict[str, Any] | None,
) -> dict[str, Any]:
    timing = times[candidate.name]
    low, high = timing.spread
    work = cost.flops if bound == "flops" else cost.bytes
    row: dict[str, Any] = {
        "name": candidate.name,
        "fidelity": candidate.fidelity,
        "median_ms": timing.median * 1e3,
        "low_ms": low * 1e3,
        "high_ms": high * 1e3,
        "samples": len(timing.samples),
        "rate": work / timing.median / 1e9,
        "unit": "GFLOP/s" if bound == "flops" else "GB/s",
        "percent": 100 * roof / timing.median,
        "error": error,
    }
    for key, base in (("vs_torch", FLOOR), ("vs_eager", EAGER), ("vs_compile", COMPILED)):
        if base in times:
            middle, below, above = timing.ratio_to(times[base])
            row[key] = middle
            row[f"{key}_spread"] = [below, above]
    return row
