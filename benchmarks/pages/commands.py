"""python -m benchmarks.pages docs and plots: what the program writes into the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sgl_kernels.cli import _common
from sgl_kernels.cli._common import Json

RESULTS = Path("benchmarks/results")


def docs(
    root: Annotated[Path, typer.Option(help="The checkout.")] = Path("."),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if something is stale.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the generated tables of README.md and docs/, and from the committed results docs/performance.md and
    sgl_kernels/data/measured.json."""
    from benchmarks.pages import measured, performance, tables

    if not (root / "docs").is_dir():
        raise typer.BadParameter(
            f"--root is '{root}', which has no docs/; run this in the checkout, or name it"
        )
    wanted = {
        path: tables.refreshed(path.read_text("utf-8"), str(path)) for path in tables.marked_files(root)
    }
    wanted[root / "docs" / "performance.md"] = performance.render(root / RESULTS)
    data = root / "sgl_kernels" / "data"
    if data.is_dir():
        wanted[data / "measured.json"] = measured.render(root / RESULTS)
    stale = [p for p, text in wanted.items() if not p.is_file() or p.read_text("utf-8") != text]
    if not check:
        for path in stale:
            path.write_text(wanted[path], encoding="utf-8")
    if as_json:
        _common.emit_json(
            {"files": [str(p) for p in wanted], "stale" if check else "written": [str(p) for p in stale]}
        )
    elif not check:
        typer.echo("\n".join(f"written: {path}" for path in stale) or "Everything is up to date.")
    if check and stale:
        names = ", ".join(map(str, stale))
        _common.complain(f"{names}: stale; write it anew with `python -m benchmarks.pages docs`")
        raise typer.Exit(_common.FAILED)
    if check and not as_json:
        typer.echo("Everything is up to date.")


def plots(
    results: Annotated[Path, typer.Option(help="Folder of result files, searched through.")] = RESULTS,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the pictures; beside each result file if absent.")
    ] = None,
    as_json: Json = False,
) -> None:
    """One picture for each op family and result file. Needs matplotlib (pip install matplotlib)."""
    from benchmarks.pages import plots as pictures

    if not results.is_dir():
        raise typer.BadParameter(
            f"--results is '{results}', expected a folder of result files; see `bench --out`"
        )
    _common.target_folder("--out", out)
    written = pictures.draw_all(results, out)
    if as_json:
        _common.emit_json([str(path) for path in written])
    else:
        typer.echo("\n".join(f"written: {path}" for path in written) or f"{results} holds no result file")
