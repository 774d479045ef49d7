"""The parity matrix for people: op x backend, what failed, and why cells were skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sgl_kernels.tools.page.html import Mark, Section, Table, Text, render_html
from sgl_kernels.tools.parity.cell import Cell, counts, summarise


def grid(cells: Sequence[Cell]) -> Table:
    """One row for each op, one column for each backend."""
    ops = list(dict.fromkeys(cell.op for cell in cells))
    backends = list(dict.fromkeys(cell.backend for cell in cells))
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.op, cell.backend), []).append(cell)
    rows = [[op, *(_square(groups.get((op, backend), [])) for backend in backends)] for op in ops]
    return Table("Parity", ("op", *backends), rows, summarise(list(cells)))


def _square(cells: list[Cell]) -> Mark:
    if not cells:
        return Mark("", "muted")
    found = counts(cells)
    text = " ".join(
        part
        for part in (
            f"{found['pass']} passed" if found["pass"] else "",
            f"{found['fail']} FAILED" if found["fail"] else "",
            f"{found['skip']} skipped" if found["skip"] else "",
        )
        if part
    )
    tone = "bad" if found["fail"] else "good" if found["pass"] else "muted"
    hint = "; ".join(f"{n} x {why}" for why, n in skip_reasons(cells).most_common(3))
    return Mark(text, tone, hint)


def skip_reasons(cells: Sequence[Cell]) -> Counter[str]:
    """How often each reason skipped a cell."""
    return Counter(cell.detail for cell in cells if cell.status == "skip")


def failures(cells: Sequence[Cell]) -> Table:
    """Every failing cell with what went wrong."""
    rows = [(c.op, c.backend, c.case, c.dtype, Mark(c.detail, "bad")) for c in cells if c.status == "fail"]
    return Table("Failed", ("op", "backend", "case", "dtype", "what went wrong"), rows)


def skips(cells: Sequence[Cell]) -> Table:
    """Why cells were skipped, by backend."""
    rows = []
    for backend in dict.fromkeys(c.backend for c in cells):
        own = [c for c in cells if c.backend == backend]
        rows += [(backend, number, why) for why, number in skip_reasons(own).most_common()]
    return Table("Skipped", ("backend", "cells", "reason"), rows)


def worst(cells: Sequence[Cell], limit: int = 12) -> Table:
    """The passing cells that came closest to what was allowed."""
    judged = [(c.error.relative_l2 / c.limit, c) for c in cells if c.status == "pass" and c.error and c.limit]
    judged.sort(key=lambda pair: -pair[0])
    rows = [
        (
            c.op,
            c.backend,
            c.case,
            c.dtype,
            f"{c.error.relative_l2:.2e}",
            f"{c.limit:.2e}",
            f"{share * 100:.0f}%",
        )
        for share, c in judged[:limit]
        if c.error is not None
    ]
    columns = ("op", "backend", "case", "dtype", "relative L2", "allowed", "used")
    return Table("Closest to the limit", columns, rows)


def required(cells: Sequence[Cell], names: Sequence[str]) -> list[str]:
    """What `--require` finds: skipped cells of the named backends, and names that have no cell at all."""
    problems = []
    for name in names:
        own = [c for c in cells if c.backend == name]
        if not own:
            problems.append(f"--require {name}: the matrix has no cell of this backend")
        reasons = skip_reasons(own)
        problems += [f"--require {name}: {number} cells skipped ({why})" for why, number in reasons.items()]
    return problems


def page(cells: Sequence[Cell], subtitle: str) -> str:
    """The matrix as one self-contained HTML page, every cell included."""
    every = [
        (
            c.op,
            c.case,
            c.backend,
            c.dtype,
            Mark(c.status, {"pass": "good", "fail": "bad"}.get(c.status, "muted")),
            f"{c.error.relative_l2:.2e}" if c.error else "",
            f"{c.limit:.2e}" if c.limit else "",
            c.detail,
        )
        for c in cells
    ]
    how = (
        "Every cell is one op, case and dtype on one backend, on fresh random inputs, against the definition "
        "in float64. An exact backend may err twice as much as plain torch at that dtype, plus one rounding; "
        "a lossy one has a stated relative L2. Skipped cells say why."
    )
    columns = ("op", "case", "backend", "dtype", "status", "relative L2", "allowed", "detail")
    sections: list[Section] = [Text("", how), grid(cells), failures(cells), worst(cells), skips(cells)]
    sections.append(Table("Every cell", columns, every))
    shown = [s for s in sections if not isinstance(s, Table) or s.rows]
    return render_html(shown, title="Parity matrix of sgl_kernels", subtitle=subtitle)
