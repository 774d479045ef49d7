"""What was aimed at on the CPU, beside what was measured: a table out of result files."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_kernels.tools.bench.results import geometric_mean
from sgl_kernels.tools.page.html import Mark, Table

PLAIN = ("dit1k*", "flux*", "wan*", "window*", "cross*", "sd3*", "bhsd*")

NEAR = 85.0
"""Per cent of the copy bandwidth at which a case that moves bytes is as fast as it should be on a machine."""
BOUND = 110.0
"""Per cent of a ceiling above which it was no ceiling: caches, or a copy that was measured while others copied."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio to plain torch that some cases should reach: their geometric mean, and the least of them."""

    title: str
    op: str
    cases: tuple[str, ...]
    dtype: str
    mean: float
    least: float = 0.0
    backend: str = "cpu"
    needs: str = ""  # the instruction set the figure was set on, where another one cannot reach it


BF16 = "avx512bf16"  # vdpbf16ps does twice the work of a float32 FMA; without it bf16 cannot pass float32


def _rows(title: str, op: str, case: str, ratio: float) -> Iterator[Goal]:
    for dtype in ("bfloat16", "float16", "float32"):
        yield Goal(title, op, (case,), dtype, ratio)


GOALS: tuple[Goal, ...] = (
    Goal("attention, head_dim 64 and more", "attention", PLAIN, "bfloat16", 4.8, 4.3, needs=BF16),
    Goal("attention", "attention", PLAIN, "float32", 2.4, 2.2),
    Goal("attention", "attention", PLAIN, "float16", 3.8, 3.0),
    Goal("attention, head_dim 32", "attention", ("small*",), "bfloat16", 5.5, needs=BF16),
    Goal("attention in int8", "attention", PLAIN, "bfloat16", 7.0, 6.0, "sage_cpu"),
    Goal("causal", "attention", ("causal*",), "bfloat16", 5.2, needs=BF16),
    Goal("causal", "attention", ("causal*",), "float32", 2.6),
    Goal("bool and padding masks", "attention", ("*.mask", "*.padding"), "bfloat16", 4.3, needs=BF16),
    Goal("bool and padding masks", "attention", ("*.mask", "*.padding"), "float32", 2.1),
    Goal("additive masks", "attention", ("additive*", "*.bias"), "bfloat16", 4.0, needs=BF16),
    Goal("additive masks", "attention", ("additive*", "*.bias"), "float32", 2.0),
    Goal("decode", "attention", ("decode*",), "bfloat16", 35.0, needs=BF16),
    Goal("decode", "attention", ("decode*",), "float16", 20.0),
    Goal("decode", "attention", ("decode*",), "float32", 3.0),
    *_rows("rms_norm 4096x3072", "rms_norm", "4096x3072", 9.7),
    *_rows("rms_norm 1024x1152", "rms_norm", "1024x1152", 12.0),
    *_rows("layer_norm 4096x3072", "layer_norm", "4096x3072", 2.5),
    *_rows("adaLN 4096x3072", "norm_scale_shift", "4096x3072", 4.6),
    *_rows("adaLN 1024x1152", "norm_scale_shift", "1024x1152", 5.9),
    *_rows("x + gate * y, then adaLN", "residual_gate_norm_scale_shift", "4096x3072", 2.2),
    *_rows("qk norm and rope, interleaved", "qk_norm_rope", "flux*", 25.0),
    *_rows("qk norm and rope, half-split", "qk_norm_rope", "neox*", 20.0),
    *_rows("group_norm and SiLU 128x64x64", "group_norm", "vae.128x64x64", 3.7),
    *_rows("silu_mul 4096x12288", "silu_mul", "4096x12288", 2.6),
    *_rows("gelu_tanh 4096x12288", "gelu_tanh", "4096x12288", 9.3),
)
"""Set from a prototype on one core of a Zen 5 server, which has avx512bf16; ratios to plain torch in the same run."""


def compare(rows: Sequence[dict[str, Any]], arch: str) -> Table:
    """Each goal that something was measured for: what was aimed at, what was reached, and whether that is it."""
    lines = []
    for goal in GOALS:
        for threads in sorted({row["threads"] for row in rows}):
            measured = (_measured(row, goal) for row in rows if row["threads"] == threads)
            found = [one for one in measured if one is not None]
            if found:
                lines.append(_line(goal, threads, found, arch))
    columns = ["what", "dtype", "threads", "cases", "goal: mean", "measured", "goal: least", "measured least"]
    return Table("", [*columns, "of ceiling", "at the ceiling", "met"], lines)


def _measured(row: dict[str, Any], goal: Goal) -> tuple[float, float, str] | None:
    """(ratio to plain torch, per cent of the ceiling, what bounds the case), if the goal speaks of this row."""
    if row["op"] != goal.op or row["dtype"] != goal.dtype:
        return None
    if not any(fnmatch.fnmatchcase(row["case"], pattern) for pattern in goal.cases):
        return None
    candidate = next((c for c in row["candidates"] if c["name"] == goal.backend), None)
    if candidate is None:
        return None
    ratio = candidate.get("vs_eager") or candidate.get("vs_torch")
    return (float(ratio), float(candidate["percent"]), str(row["bound"])) if ratio else None


def _line(goal: Goal, threads: int, found: list[tuple[float, float, str]], arch: str) -> tuple[object, ...]:
    ratios = [ratio for ratio, _, _ in found]
    mean, least = geometric_mean(ratios), min(ratios)
    share = geometric_mean([percent for _, percent, _ in found])
    verdict = Mark("no", "bad")
    # what a kernel at 100 % of the ceilings that were measured here would reach; a kernel may already be above it,
    # because a copy is no strict bound inside the caches
    tops = [ratio * 100 / max(percent, 1e-9) for ratio, percent, _ in found]
    top, top_least = max(mean, geometric_mean(tops)), max(least, min(tops))
    if mean >= goal.mean and least >= goal.least:
        verdict = Mark("yes", "good")
    elif goal.needs and goal.needs != arch:
        verdict = Mark(f"no: needs {goal.needs}", "muted")
    elif top < goal.mean and share <= BOUND:
        verdict = Mark(f"no: above this machine's ceiling ({top:.2f}x)", "muted")
    elif top_least < goal.least and share <= BOUND:
        verdict = Mark(f"no: the least is above this machine's ceiling ({top_least:.2f}x)", "muted")
    elif NEAR <= share <= BOUND and all(bound == "bytes" for _, _, bound in found):
        verdict = Mark("no: at the machine's bandwidth", "muted")
    return (
        goal.title,
        goal.dtype,
        threads,
        len(found),
        f"{goal.mean:g}x",
        f"{mean:.2f}x",
        f"{goal.least:g}x" if goal.least else "",
        f"{least:.2f}x" if goal.least else "",
        f"{share:.0f}%",
        f"{top:.2f}x",
        verdict,
    )
