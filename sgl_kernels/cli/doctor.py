"""sgl-kernels doctor: what works here, what does not, and the command that fixes it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sgl_kernels.cli import _common
from sgl_kernels.cli._common import Json

SIGNS = {"ready": ("good", "ready"), "absent": ("muted", "absent"), "broken": ("bad", "broken")}


def doctor(
    device: Annotated[
        str | None,
        typer.Option(
            help="Ask about another machine, such as cuda:sm90 or rocm:gfx942; nothing is imported."
        ),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Import each vendor package, in a child process.")
    ] = True,
    timeout: Annotated[float, typer.Option(help="Seconds one vendor package may take.")] = 60.0,
    as_json: Json = False,
) -> None:
    """Device, torch, C++ extension, every backend: present, or why not and the exact command that fixes it.

    Exit code 1 when something is broken; a package that is merely absent breaks nothing.
    """
    from sgl_kernels.tools.doctor.diagnosis import examine

    _common.within("--timeout", timeout, 1, 86400)
    where = _common.machine("--device", device) if device is not None else None
    diagnosis = examine(device=where, probe_vendors=probe, timeout_s=timeout)
    if as_json:
        _common.emit_json(diagnosis.to_dict())
    else:
        _print(diagnosis)
    if not diagnosis.is_healthy:
        raise typer.Exit(_common.FAILED)


def _print(diagnosis: Any) -> None:
    from rich.markup import escape

    from sgl_kernels.tools.page.html import Mark, Table, rich_table

    console = _common.console()
    console.print("  ".join(f"[bold]{k}[/bold] {escape(v)}" for k, v in diagnosis.versions.items()))
    for index, name in enumerate(diagnosis.devices):
        console.print(f"[bold]{'devices' if index == 0 else '       '}[/bold] {escape(name)}")
    if diagnosis.target != diagnosis.devices[0]:
        console.print(f"[bold]asked about[/bold] {escape(diagnosis.target)}")
    rows = []
    for finding in (diagnosis.extension, diagnosis.key_module, *diagnosis.backends):
        tone, word = SIGNS.get(finding.status, ("muted", finding.status))
        ops = f"{len(finding.ops)}" if finding.ops else ""
        rows.append((finding.name, Mark(word, tone), ops, finding.detail or finding.doc, finding.fix))
    console.print(rich_table(Table("", ("backend", "state", "ops", "detail", "how to fix it"), rows)))
    console.print(
        "[dim]absent: a package that is not installed. elsewhere: needs another device than this one. "
        "The package `sgl_kernel` (without s) is SGLang's own and is not ours.[/dim]"
    )
    for plugin in diagnosis.plugins:
        console.print(
            f"[bold red]broken plug-in[/bold red] {escape(plugin['source'])}: {escape(plugin['error'])}"
        )
    for problem in diagnosis.problems:
        console.print(f"[bold red]settings[/bold red] {escape(problem)}")
    if diagnosis.extension.status == "absent":
        console.print(f"[yellow]no C++ extension[/yellow] {escape(diagnosis.extension.detail)}")
    if diagnosis.is_healthy:
        console.print("[green]Nothing is broken.[/green]")
