"""docs/support-matrix.md: which backend serves which op, and how each claim is proven."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from sgl_kernels.core.device import probe
from sgl_kernels.core.implementation import Implementation
from sgl_kernels.core.op import Case, Op
from sgl_kernels.core.packages import installed_version
from sgl_kernels.core.registry import Registry
from sgl_kernels.core.verdict import Rejected
from sgl_kernels.tools.bench_results import cpu_name
from sgl_kernels.tools.parity import run_cell, verdict
from sgl_kernels.tools.report import Table, markdown_table

PROOFS = ("interpreted", "compiled", "contract", "simulated")
MEANING = {
    "ran": "the parity cases of this op ran on the device and were right",
    "interpreted": "our kernel ran in its interpreter on the CPU and was right",
    "compiled": "our kernel was compiled for the device, and not run",
    "contract": "the adapter ran against a stand-in with the vendor's exact signature",
    "simulated": "the adapter ran against a simulated device",
    "declared": "selection offers it; nothing of it has run",
    "no": "the backend does not have this op",
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """That an implementation ran somewhere and was right."""

    op: str
    backend: str
    device: str
    torch: str
    date: str


def device_name(device: torch.device) -> str:
    """'Intel Xeon (cpu:avx512)', 'NVIDIA H200 (cuda:sm90)'."""
    found = probe(device)
    return str(dataclasses.replace(found, name=cpu_name()) if found.platform == "cpu" else found)


def load_evidence(path: Path) -> list[Evidence]:
    """What earlier runs saw, on this machine and on others."""
    if not path.is_file():
        return []
    return [Evidence(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def save_evidence(path: Path, rows: list[Evidence]) -> None:
    """Write the evidence, ordered so that a change is a small diff."""
    ordered = sorted(rows, key=lambda e: (e.op, e.backend, e.device))
    lines = ",\n  ".join(json.dumps(asdict(row)) for row in ordered)
    path.write_text(f"[\n  {lines}\n]\n" if ordered else "[]\n", encoding="utf-8")


def runnable(source: Registry, device: torch.device) -> list[tuple[Op, Implementation]]:
    """Every implementation that this device and its packages accept for at least one smoke case."""
    return [
        (op, implementation)
        for op in source.ops().values()
        for implementation in source.implementations(op.name)
        if next(accepted(op, implementation, device, source), None) is not None
    ]


def smoke_cases(op: Op) -> list[Case]:
    """The cases for a first look; the first of all where none is marked so."""
    cases = [case for case in op.cases() if "smoke" in case.tags]
    return cases or [case for case in op.cases() if "test" in case.tags][:1]


def accepted(
    op: Op, implementation: Implementation, device: torch.device, source: Registry
) -> Iterator[tuple[Case, torch.dtype]]:
    """The smoke cases that an implementation takes here."""
    where = probe(device)
    for case in smoke_cases(op):
        for dtype in case.dtypes:
            args = op.canonical(*case.make(device, dtype))
            if verdict(op, implementation, args, where, installed_version) is not None:
                continue
            config = implementation.configs(op.facts(*args), where)[0] if implementation.configs else None
            if not isinstance(source.loaded(implementation, config), Rejected):
                yield case, dtype


def gather(
    source: Registry,
    device: torch.device,
    known: list[Evidence],
    advance: Callable[[str], object] = lambda text: None,
) -> tuple[list[Evidence], list[str]]:
    """Run the smoke cases here and add what was right to what is known; (evidence, failures)."""
    where, today = device_name(device), datetime.date.today().isoformat()
    kept = {(e.op, e.backend, e.device): e for e in known if _exists(source, e)}
    problems = []
    for op, implementation in runnable(source, device):
        advance(f"{op.name} {implementation.backend}")
        cells = [
            run_cell(op, case, implementation, dtype, device=device, source=source)
            for case, dtype in accepted(op, implementation, device, source)
        ]
        key = (op.name, implementation.backend, where)
        wrong = [c for c in cells if c.status == "fail"]
        problems += [f"{c.op} on {c.backend}, case {c.case} in {c.dtype}: {c.detail}" for c in wrong]
        if wrong:
            kept.pop(key, None)
        elif key not in kept and any(c.status == "pass" for c in cells):
            kept[key] = Evidence(*key, torch.__version__.partition("+")[0], today)
    return list(kept.values()), problems


def _exists(source: Registry, evidence: Evidence) -> bool:
    return any(
        i.backend == evidence.backend
        for i in (source.implementations(evidence.op) if evidence.op in source.ops() else ())
    )


def cell(implementation: Implementation | None, ran: bool) -> str:
    """The word of one square."""
    if implementation is None:
        return "no"
    if ran:
        return "ran"
    return implementation.proof or "declared"


def grid(source: Registry, evidence: list[Evidence]) -> Table:
    """One row for each backend, one column for each op."""
    seen = {(e.op, e.backend) for e in evidence}
    ops = list(source.ops())
    rows = []
    for backend in source.backends():
        row = [f"`{backend}`"]
        for op in ops:
            found = next((i for i in source.implementations(op) if i.backend == backend), None)
            word = cell(found, (op, backend) in seen)
            row.append("" if word == "no" else word)
        rows.append(row)
    return Table("Support matrix", ("backend", *(f"`{op}`" for op in ops)), rows)


def render(source: Registry, evidence: list[Evidence]) -> str:
    """The whole page. It depends on the registry and the evidence alone, so every machine writes the same."""
    own = [e for e in evidence if _exists(source, e)]
    ran = Table(
        "",
        ("device", "torch", "date", "backends"),
        [
            (device, version, date, ", ".join(f"`{b}`" for b in dict.fromkeys(e.backend for e in rows)))
            for (device, version, date), rows in _by_device(own).items()
        ],
    )
    words = Table("", ("word", "meaning"), [(k, v) for k, v in MEANING.items() if k != "no"])
    parts = [
        "# Support matrix",
        "Written by `sgl-kernels support-matrix`; `--check` fails when it is stale. An empty square means that "
        "the backend does not have the op.",
        markdown_table(grid(source, own)),
        "## What the words mean",
        markdown_table(words),
        "## Where it ran",
        markdown_table(ran) if ran.rows else "Nowhere yet.",
    ]
    return "\n\n".join(parts) + "\n"


def _by_device(evidence: list[Evidence]) -> dict[tuple[str, str, str], list[Evidence]]:
    groups: dict[tuple[str, str, str], list[Evidence]] = {}
    for e in sorted(evidence, key=lambda e: (e.device, e.date, e.backend)):
        groups.setdefault((e.device, e.torch, e.date), []).append(e)
    return groups


def stale(page: Path, evidence_file: Path, source: Registry, device: torch.device) -> list[str]:
    """Why the committed page is not what it would be if it were written now; empty when it is."""
    if not page.is_file():
        return [f"{page} does not exist"]
    evidence = load_evidence(evidence_file)
    problems = [
        f"{evidence_file} speaks of {e.op} on {e.backend}, which the registry does not have"
        for e in evidence
        if not _exists(source, e)
    ]
    if page.read_text(encoding="utf-8") != render(source, evidence):
        problems.append(f"{page} is not what the registry and {evidence_file.name} give")
    seen = {(e.op, e.backend) for e in evidence}
    for op, implementation in runnable(source, device):
        if (op.name, implementation.backend) not in seen:
            problems.append(
                f"{op.name} on {implementation.backend} can run here, and the page does not say it ran"
            )
    return problems
