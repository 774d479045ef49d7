"""One row: a case on ours, on torch and on one peer, in turns; or the reason why the peer has no figure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import sgl_kernels
from benchmarks.peers.peer import Broken, NotOffered, Peer, Variant, first_line
from sgl_kernels.core.op import Case, Op
from sgl_kernels.core.registry import registry
from sgl_kernels.tools.bench.ceilings import Ceilings
from sgl_kernels.tools.bench.clock import Timing, interleave
from sgl_kernels.tools.bench.measure import roofline
from sgl_kernels.tools.bench.oracle import Oracle
from sgl_kernels.tools.bench.plain_torch import spelling
from sgl_kernels.tools.parity.cell import FLOOR

CPU = torch.device("cpu")
OURS, TORCH = "ours", "torch"
SETTLE_S = 0.005
"""A pause before each sample: workers of the last candidate's pool spin for milliseconds before they sleep."""
LIMIT = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Relative L2 beyond which an answer is wrong rather than rounded, so that a wrong call cannot win."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure."""

    rounds: int = 11
    seconds: float = 4.0
    clock: str = "wall"  # or cpu: the time of the whole process, which counts a peer's own threads too


def head(op: str, case: str, dtype: torch.dtype, threads: int, peer: str) -> dict[str, Any]:
    """What identifies a row."""
    name = str(dtype).removeprefix("torch.")
    return {"op": op, "case": case, "dtype": name, "threads": threads, "peer": peer}


def measure(
    op: Op, case: Case, dtype: torch.dtype, peer: Peer, name: str, *, ceilings: Ceilings, options: Options
) -> dict[str, Any]:
    """The row. A peer that raises, or whose answers are all wrong, gives a reason instead of figures."""
    row = head(op.name, case.name, dtype, torch.get_num_threads(), name)
    args = op.canonical(*case.make(CPU, dtype, 0))
    try:
        found = peer.variants(op.name, args)
    except NotOffered as answer:
        return {**row, "reason": str(answer)}
    except Exception as error:
        return {**row, "reason": f"FAILED: {first_line(error)}"}
    backend = ours(op, args, name)
    runs: dict[str, Callable[[], Any]] = {OURS: lambda: backend[1](*args)}
    plain = spelling(op.name, args) or registry.loaded(_implementation(op, FLOOR), None)
    runs[TORCH] = lambda: plain(*args)
    oracle = Oracle(op, args)
    errors = {key: oracle.judge(run()).relative_l2 for key, run in runs.items()}
    out, dropped = {}, {}
    for variant in found:
        why, error = judge(variant, oracle, dtype)
        if why:
            dropped[variant.label] = why
        elif isinstance(variant, Variant):
            runs[variant.label], errors[variant.label] = variant.run, error
            out[variant.label] = variant
    if not out:
        return {**row, "reason": "; ".join(f"{label}: {why}" for label, why in dropped.items())}
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    times = interleave(
        {key: [run] for key, run in runs.items()},
        device=CPU,
        rounds=options.rounds,
        budget_s=options.seconds,
        clock=clock,
        settle_s=SETTLE_S,
    )
    bound, roof = roofline(op.cost(*args), dtype, ceilings)
    return {
        **row,
        **figures(times, list(out), errors),
        "ours": backend[0],
        "bound": bound,
        "percent": 100 * roof / times[OURS].median,
        "dropped": dropped,
    }


def judge(variant: Variant | Broken, oracle: Oracle, dtype: torch.dtype) -> tuple[str, float]:
    """('' or what is wrong with a variant, its relative L2)."""
    if isinstance(variant, Broken):
        return variant.why, 0.0
    try:
        variant.run()
        error = oracle.judge(variant.result())
    except Exception as failure:
        return first_line(failure), 0.0
    if not error.finite_match or not error.relative_l2 <= LIMIT[dtype]:
        return f"its answer is wrong: relative L2 {error.relative_l2:.1e}", error.relative_l2
    return "", error.relative_l2


def figures(times: dict[str, Timing], labels: Sequence[str], errors: dict[str, float]) -> dict[str, Any]:
    """Times, ratios and errors; of a peer's variants the fastest one speaks for it."""
    call = min(labels, key=lambda label: times[label].median)
    ratio, low, high = times[OURS].ratio_to(times[call])
    mine, theirs = (times[name].ratio_to(times[TORCH]) for name in (OURS, call))
    return {
        "call": call,
        "ours_ms": times[OURS].median * 1e3,
        "torch_ms": times[TORCH].median * 1e3,
        "peer_ms": times[call].median * 1e3,
        "vs_peer": ratio,
        "vs_peer_spread": [low, high],
        "vs_torch": mine[0],
        "vs_torch_spread": list(mine[1:]),
        "peer_vs_torch": theirs[0],
        "peer_vs_torch_spread": list(theirs[1:]),
        "samples": len(times[OURS].samples),
        "errors": {"ours": errors[OURS], "torch": errors[TORCH], "peer": errors[call]},
        "others_ms": {label: times[label].median * 1e3 for label in labels if label != call},
    }


def ours(op: Op, args: tuple[Any, ...], peer: str) -> tuple[str, Callable[..., Any]]:
    """What selection takes for the call, except that the peer is not measured against itself."""
    chosen = sgl_kernels.explain(op.name, *args).chosen
    if chosen == peer:
        chosen = "cpu"
    return chosen, registry.loaded(_implementation(op, chosen), None)


def _implementation(op: Op, backend: str) -> Any:
    return next(i for i in registry.implementations(op.name) if i.backend == backend)
