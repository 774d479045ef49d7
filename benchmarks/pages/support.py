"""python -m benchmarks.pages support-matrix: writes docs/support-matrix.md, or says that it is stale."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from sgl_kernels.cli import _common
from sgl_kernels.cli._common import Json

PAGE = Path("docs/support-matrix.md")
RESULTS = Path("benchmarks/results/triton_aot")


def support_matrix(
    out: Annotated[Path, typer.Option(help="The page; what ran is kept beside it, in a .json file.")] = PAGE,
    device: Annotated[str, typer.Option(help="The torch device whose backends are run.")] = "cpu",
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if the page is stale.")
    ] = False,
    run: Annotated[
        bool, typer.Option("--run/--no-run", help="Run the smoke cases of what fits this device.")
    ] = True,
    evidence_from: Annotated[
        Path | None,
        typer.Option("--evidence", help="Lines that tests put down: see `make support-evidence`."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Which backend serves which op, and how that is known: ran, interpreted, compiled, contract, simulated.

    Evidence of other machines is kept, so running this on each machine adds up.
    """
    from benchmarks.pages import support_matrix as matrix
    from sgl_kernels.core.registry import registry
    from sgl_kernels.tools.page.html import rich_table

    where = _common.torch_device("--device", device)
    _common.target_file("--out", out)
    if evidence_from is not None and check:
        raise typer.BadParameter("--evidence is read when the page is written; leave --check out, or it")
    evidence_file = out.with_suffix(".json")
    problems: list[str] = []
    if check:
        problems = matrix.stale(out, evidence_file, registry, where)
        evidence = _evidence(evidence_file)
    else:
        evidence = _evidence(evidence_file)
        if run:
            total = len(matrix.runnable(registry, where))
            with _common.progress(total, "smoke cases", as_json) as advance:
                evidence, problems = matrix.gather(registry, where, evidence, advance)
        if evidence_from is not None:
            if not evidence_from.is_file():
                raise typer.BadParameter(
                    f"--evidence is '{evidence_from}', expected a file written by the tests"
                )
            today = datetime.date.today().isoformat()
            try:
                lines = evidence_from.read_text("utf-8").splitlines()
                evidence = matrix.merged(evidence, iter(lines), today)
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise typer.BadParameter(
                    f"--evidence is '{evidence_from}', which does not hold lines of the tests: {error}"
                ) from None
        if RESULTS.is_dir():
            evidence = [e for e in evidence if e.proof != "compiled"] + matrix.compiled(RESULTS, registry)
        matrix.save_evidence(evidence_file, evidence)
        _common.write("--out", out, matrix.render(registry, evidence))
    table = matrix.grid(registry, evidence)
    if as_json:
        _common.emit_json(
            {"page": str(out), "problems": problems, "matrix": _cells(table.columns, table.rows)}
        )
    elif not check:
        console = _common.console()
        console.print(rich_table(table))
        typer.echo(f"written: {out}, {evidence_file}")
    for problem in problems:
        _common.complain(problem)
    if problems:
        if check and not as_json:
            typer.echo("To write it anew: python -m benchmarks.pages support-matrix", err=True)
        raise typer.Exit(_common.FAILED)


def _evidence(file: Path) -> list[Any]:
    from benchmarks.pages import support_matrix as matrix

    try:
        return matrix.load_evidence(file)
    except (OSError, ValueError, TypeError) as error:
        raise typer.BadParameter(
            f"--out: {file}, beside the page, does not hold what ran: {error}; delete it, or take it from git"
        ) from None


def _cells(columns: object, rows: object) -> dict[str, dict[str, str]]:
    names = [str(c).strip("`") for c in columns][1:]  # type: ignore[attr-defined]
    return {
        str(row[0]).strip("`"): {n: str(c) or "no" for n, c in zip(names, row[1:], strict=True)}
        for row in rows  # type: ignore[attr-defined]
    }
