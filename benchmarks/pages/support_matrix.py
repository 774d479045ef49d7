"""docs/support-matrix.md: which backend serves which op, and how each claim is proven."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from sgl_kernels.core.device import probe
from sgl_kernels.core.op import Case, Op
from sgl_kernels.core.registry import Registry
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.core.selection.packages import installed_version
from sgl_kernels.core.selection.verdict import Rejected
from sgl_kernels.tools.bench.results import cpu_name
from sgl_kernels.tools.page.html import Table, markdown_table
from sgl_kernels.tools.parity.cell import run_cell, verdict

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
    """That an implementation was right: run on a device, or proven by a test without one."""

    op: str
    backend: str
    device: str  # where it ran; '' for a proof without the device
    torch: str
    date: str
    proof: str = "ran"
    where: str = ""  # the test, or the result file
    cases: int = 0


def device_name(device: torch.device) -> str:
    """'Intel Xeon (cpu:avx512)', 'NVIDIA H200 (cuda:sm90)'."""
    found = probe(device)
    return str(dataclasses.replace(found, name=cpu_name()) if found.platform == "cpu" else found)


def load_evidence(path: Path) -> list[Evidence]:
    """What earlier runs saw, on this machine and on others."""
    if not path.is_file():
        return []
    return [
        Evidence(**{"device": "", "date": "", **row}) for row in json.loads(path.read_text(encoding="utf-8"))
    ]


def save_evidence(path: Path, rows: list[Evidence]) -> None:
    """Write the evidence, ordered so that a change is a small diff."""
    ordered = sorted(rows, key=lambda e: (e.op, e.backend, e.proof, e.device, e.where))
    lines = ",\n  ".join(json.dumps({k: v for k, v in asdict(row).items() if v}) for row in ordered)
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
    proven = [e for e in known if e.proof != "ran" and _exists(source, e)]
    kept = {(e.op, e.backend, e.device): e for e in known if e.proof == "ran" and _exists(source, e)}
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
    return [*kept.values(), *proven], problems


def merged(known: list[Evidence], lines: Iterator[str], date: str) -> list[Evidence]:
    """`known` with what tests put down (tests/evidence.py), cases of a test added up; an older word of it goes."""
    totals: dict[tuple[str, str, str, str], Evidence] = {}
    for line in lines:
        row = json.loads(line)
        key = (row["op"], row["backend"], row["proof"], row["test"])
        cases = row["cases"] + (totals[key].cases if key in totals else 0)
        totals[key] = Evidence(key[0], key[1], "", row["torch"], date, key[2], key[3], cases)
    fresh = {(e.op, e.backend, e.proof) for e in totals.values()}
    return [e for e in known if (e.op, e.backend, e.proof) not in fresh] + list(totals.values())


KERNEL_WORDS = {
    ("attention", "triton_int8"): ("attention", "int8"),
    ("attention_lse", "triton"): ("attention", "lse"),
    ("attention_varlen", "triton"): ("attention", "varlen"),
}
"""The words of a kernel's name in the budgets, where they are not the op's name."""


def compiled(folder: Path, source: Registry) -> list[Evidence]:
    """That our Triton kernels were compiled, from the budgets of every target (benchmarks/triton_aot)."""
    targets = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))
    }
    names = [
        (target, set(re.split(r"[/.]", name))) for target, data in targets.items() for name in data["kernels"]
    ]
    version = ", ".join(sorted({f"triton {data['triton']}" for data in targets.values()}))
    found = []
    for op in source.ops():
        for implementation in source.implementations(op):
            words = KERNEL_WORDS.get((op, implementation.backend), (op,))
            int8 = {"int8"}.difference(words)
            fits = [target for target, name in names if name.issuperset(words) and not name & int8]
            where = f"{folder.as_posix()}: {', '.join(dict.fromkeys(fits))}"
            if "compiled" in implementation.proof and fits:
                found.append(
                    Evidence(op, implementation.backend, "", version, "", "compiled", where, len(fits))
                )
    return found


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
    seen = {(e.op, e.backend) for e in evidence if e.proof == "ran"}
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
            for (device, version, date), rows in _by_device([e for e in own if e.proof == "ran"]).items()
        ],
    )
    words = Table("", ("word", "meaning"), [(k, v) for k, v in MEANING.items() if k != "no"])
    parts = [
        "# Support matrix",
        "Written by `python -m benchmarks.pages support-matrix`; `--check` fails when it is stale. An empty "
        "square means that the backend does not have the op.",
        markdown_table(grid(source, own)),
        "## What the words mean",
        markdown_table(words),
        "## Where it ran",
        markdown_table(ran) if ran.rows else "Nowhere yet.",
        "## Evidence",
        "What stands behind each cell that did not run on its device: the test that showed it, how many cases of the "
        "op went through it, and when. Written by `make support-evidence` from the tests themselves.",
        markdown_table(proofs(own)),
    ]
    return "\n\n".join(parts) + "\n"


def proofs(evidence: list[Evidence]) -> Table:
    """One line for each backend, proof and place it is shown at."""
    groups: dict[tuple[str, str, str], list[Evidence]] = {}
    for e in sorted(evidence, key=lambda e: (e.backend, e.proof, e.where, e.op)):
        if e.proof != "ran":
            groups.setdefault((e.backend, e.proof, e.where), []).append(e)
    rows = [
        (
            f"`{backend}`",
            proof,
            ", ".join(f"`{e.op}` {e.cases}" for e in found),
            f"`{where}`",
            max(e.date for e in found) or found[0].torch,
        )
        for (backend, proof, where), found in groups.items()
    ]
    return Table("", ("backend", "proof", "ops and cases", "shown by", "date"), rows)


def unproven(source: Registry, evidence: list[Evidence]) -> list[tuple[str, str, str]]:
    """The (op, backend, word) cells whose word has no evidence behind it."""
    known = {(e.op, e.backend, e.proof) for e in evidence}
    return [
        (op, i.backend, word.strip())
        for op in source.ops()
        for i in source.implementations(op)
        for word in (i.proof.split(",") if i.proof else ())
        if (op, i.backend, word.strip()) not in known and (op, i.backend, "ran") not in known
    ]


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
    problems += [f"{op} on {b}: nothing stands behind {w!r}" for op, b, w in unproven(source, evidence)]
    seen = {(e.op, e.backend) for e in evidence if e.proof == "ran"}
    for op, implementation in runnable(source, device):
        if (op.name, implementation.backend) not in seen:
            problems.append(
                f"{op.name} on {implementation.backend} can run here, and the page does not say it ran"
            )
    return problems
