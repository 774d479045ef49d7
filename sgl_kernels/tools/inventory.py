"""What there is to name: ops, backends, aliases and cases, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from sgl_kernels.core.names.backends import ALIASES
from sgl_kernels.core.registry import Registry, registry
from sgl_kernels.core.selection.implementation import Fidelity, Implementation
from sgl_kernels.tools.page.html import Table


def inventory(what: Sequence[str], ops: Sequence[str] = (), source: Registry = registry) -> dict[str, Table]:
    """The tables asked for: 'ops', 'backends', 'aliases', 'cases'."""
    makers = {"ops": _ops, "backends": backends_table, "aliases": _aliases}
    return {name: _cases(source, ops) if name == "cases" else makers[name](source) for name in what}


def _ops(source: Registry) -> Table:
    rows = [
        (
            op.name,
            op.family,
            op.doc,
            ", ".join(i.backend for i in source.implementations(op.name)),
        )
        for op in source.ops().values()
    ]
    return Table("Ops", ("op", "family", "meaning", "backends"), rows)


def backends_table(source: Registry = registry) -> Table:
    """Every backend of the registry: where it runs, what it needs, and what else it is called."""
    rows = []
    for name in source.backends():
        found = [i for op in source.ops() for i in source.implementations(op) if i.backend == name]
        platforms = sorted({p for i in found for p in i.requires.platforms}) or ["every device"]
        packages = sorted({p for i in found for p in i.requires.packages})
        lossy = any(i.fidelity is Fidelity.LOSSY for i in found)
        aliases = sorted(alias for alias, targets in ALIASES.items() if targets == (name,))
        rows.append(
            (
                name,
                backend_doc(found),
                ", ".join(platforms),
                ", ".join(packages),
                "lossy" if lossy else "exact",
                len(found),
                ", ".join(aliases[:4]),
            )
        )
    columns = ("backend", "what it is", "platforms", "packages", "result", "ops", "also called")
    return Table("Backends", columns, rows)


def backend_doc(found: Sequence[Implementation]) -> str:
    """The line that says what a backend is: what it says of attention, where it has that."""
    docs = [i.doc for i in sorted(found, key=lambda i: i.op != "attention") if i.doc]
    return docs[0] if docs else ""


def _aliases(source: Registry) -> Table:
    rows = [(alias, ", ".join(targets)) for alias, targets in sorted(ALIASES.items())]
    return Table("Aliases", ("name", "means, in order"), rows)


def _cases(source: Registry, ops: Sequence[str]) -> Table:
    rows = [
        (
            op.name,
            case.name,
            ", ".join(sorted(case.tags)),
            " ".join("x".join(map(str, a.shape)) for a in case.args if hasattr(a, "shape")),
            case.note,
        )
        for op in source.ops().values()
        if not ops or op.name in ops
        for case in op.cases()
    ]
    return Table("Cases", ("op", "case", "tags", "tensors", "note"), rows)
