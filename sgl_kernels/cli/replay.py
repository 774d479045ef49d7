"""sgl-kernels replay: run a dumped call again and say how far the result is from the stored one."""

from __future__ import annotations

from typing import Annotated

import typer

from sgl_kernels.cli import _common
from sgl_kernels.cli._common import Json


def replay(
    dump: Annotated[str, typer.Argument(help="A folder below SGLANG_KERNEL_API_DUMP_DIR.")],
    backend: Annotated[str | None, typer.Option(help="Run this backend instead of the recorded one.")] = None,
    device: Annotated[str | None, typer.Option(help="Run here instead of on the recorded device.")] = None,
    reference: Annotated[bool, typer.Option(help="Also compare with the reference in float64.")] = True,
    as_json: Json = False,
) -> None:
    """Run a dumped call again; compare with the stored result and with the reference."""
    from rich.table import Table

    from sgl_kernels.tools.debug.replay import replay as run

    _common.backend_names("--backend", backend)
    if device is not None:
        _common.machine("--device", device)
    report = run(dump, backend=backend, device=device, reference=reference)
    if as_json:
        _common.emit_json(report.to_dict())
        return
    console = _common.console()
    console.print(str(report).splitlines()[0])
    table = Table("comparison", "max abs", "relative L2", "equal", "non-finite differ")
    for row in report.comparisons:
        equal = "[green]yes[/green]" if row.equal else "no"
        table.add_row(
            row.what, f"{row.max_abs:.3e}", f"{row.relative_l2:.3e}", equal, str(row.nonfinite_differ)
        )
    console.print(table)
