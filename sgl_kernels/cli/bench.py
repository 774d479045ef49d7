"""sgl-kernels bench: every backend that takes a case, next to torch, in turns, against this machine's ceilings."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Annotated, Any

import typer

from sgl_kernels.cli import _common
from sgl_kernels.cli._common import Json
from sgl_kernels.cli._errors import INTERRUPTED, label

DISPATCH = "dispatch"


def bench(
    ctx: typer.Context,
    what: Annotated[
        list[str] | None,
        typer.Argument(help="Ops or families, all if absent; or `dispatch`: the cost of a call."),
    ] = None,
    tag: Annotated[str, typer.Option(help="Cases to measure: bench, or any other tag.")] = "bench",
    case: Annotated[str | None, typer.Option(help="Only cases whose name matches this wildcard.")] = None,
    backend: Annotated[
        str | None, typer.Option(help="Only these backends (comma list); torch is always there.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Only these dtypes (comma list).")] = None,
    threads: Annotated[str, typer.Option(help="Thread counts (comma list).")] = "1",
    device: Annotated[str, typer.Option(help="The torch device.")] = "cpu",
    compile_: Annotated[
        bool, typer.Option("--compile", help="Also torch.compile of the plain spelling.")
    ] = False,
    cold: Annotated[int, typer.Option(help="Rotate inputs through this many MiB; 0 measures warm.")] = 0,
    clock: Annotated[
        str, typer.Option(help="wall, or cpu: CPU time of one thread, for a machine that is not yours alone.")
    ] = "wall",
    rounds: Annotated[int, typer.Option(help="Samples of each candidate.")] = 15,
    seconds: Annotated[float, typer.Option(help="Budget for one case.")] = 3.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="A first look: 5 samples, 2 seconds for a case.")
    ] = False,
    pin: Annotated[bool, typer.Option("--pin/--no-pin", help="Keep the threads on their cores.")] = True,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Error against the definition.")] = True,
    out: Annotated[
        Path | None,
        typer.Option(help="A .json file, or a folder for MACHINE/FAMILY.json. New rows replace old."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure. Ceilings first, then every candidate of a case in turns: ms, rate, share of the ceiling, ratio to
    torch, error against float64. Exit code 1 when a backend that accepted a case fails on it.
    """
    from sgl_kernels.tools.bench.clock import CLOCKS
    from sgl_kernels.tools.bench.measure import Options

    _common.one_of("--clock", clock, CLOCKS)
    _common.within("--rounds", rounds, 1, 1_000_000)
    _common.within("--seconds", seconds, 0.1, 86400)
    _common.within("--cold", cold, 0, _memory_mib())
    where = _common.torch_device("--device", device)
    if out is not None and out.suffix not in ("", ".json"):
        raise typer.BadParameter(f"--out is '{out}', expected a file that ends in .json, or a folder")
    if out is not None:
        (_common.target_file if out.suffix else _common.target_folder)("--out", out)
    if what and DISPATCH in what:
        if len(what) > 1:
            raise typer.BadParameter(f"WHAT is {' '.join(what)!r}; `dispatch` stands alone, name ops or it")
        _alone(ctx)
        _dispatch(quick, out, as_json)
        return
    counts = _thread_counts(threads)
    options = Options(
        rounds=min(rounds, 5) if quick else rounds,
        seconds=min(seconds, 2.0) if quick else seconds,
        clock=clock,
        cold_mib=cold,
        compile=compile_,
        check=check,
    )
    if clock == "cpu" and (counts != [1] or where.type != "cpu"):
        raise typer.BadParameter(
            "--clock is 'cpu', which measures one CPU thread; use --threads 1 or --clock wall"
        )
    work = _work(what or [], tag, case, dtype)
    backends = _common.backend_names("--backend", backend)
    data, interrupted = _measure(work, counts, where, backends, options, pin, quick, as_json)
    _show(data, out, as_json)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _alone(ctx: typer.Context) -> None:
    """`bench dispatch` measures one thing: options that choose cases or candidates would be ignored."""
    for param in ctx.command.params:
        if param.name in ("what", "quick", "out", "as_json", "device") or param.name not in ctx.params:
            continue
        if ctx.params[param.name] != param.default:
            raise typer.BadParameter(
                f"{label(param)} goes with ops; `bench dispatch` takes --quick, --out and --json"
            )


def _memory_mib() -> int:
    """Half of this machine's memory: inputs that rotate through more would push each other out to disk."""
    import os

    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 21
    except (ValueError, OSError, AttributeError):
        return 1 << 20


def _thread_counts(text: str) -> list[int]:
    import os

    most = os.cpu_count() or 1
    parts = _common.split_names(text)
    if not parts or not all(part.isascii() and part.isdigit() and 1 <= int(part) <= most for part in parts):
        raise typer.BadParameter(
            f"--threads is {text!r}, expected whole numbers from 1 to {most}, such as 1,2"
        )
    return sorted({int(part) for part in parts})


def _work(what: list[str], tag: str, case: str | None, dtype: str | None) -> list[Any]:
    from sgl_kernels.tools.bench.measure import workloads

    ops = _common.op_names("WHAT", what)
    found = list(
        workloads(
            ops=ops,
            tag=tag,
            dtypes=_common.dtypes_of("--dtype", dtype),
            matches=lambda name: case is None or fnmatch.fnmatchcase(name, case),
        )
    )
    if not found:
        raise typer.BadParameter(
            f"no case matches: --tag {tag!r}, --case {case or '*'!r}, --dtype {dtype or 'any'}; `sgl-kernels list "
            "cases` names all of them"
        )
    return found


def _measure(
    work: list[Any], counts: list[int], device: Any, backends: tuple[str, ...], options: Any, pin: bool, quick: bool,
    quiet: bool,
) -> tuple[dict[str, Any], bool]:  # fmt: skip
    import dataclasses
    import os

    from sgl_kernels.tools.bench.ceilings import measure_ceilings
    from sgl_kernels.tools.bench.clock import clock_of, retain_memory, threads
    from sgl_kernels.tools.bench.measure import measure
    from sgl_kernels.tools.bench.results import document

    allocator = retain_memory()
    load = (
        round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    )  # how busy others kept the machine
    rows, ceilings, interrupted = [], [], False
    try:
        with _common.progress(len(counts) * (len(work) + 1), "bench", quiet) as advance:
            for count in counts:
                with threads(count, pin):
                    advance(f"ceilings, {count} threads")
                    clock = clock_of(options.clock, device, count)
                    ceilings.append(measure_ceilings(device, 1.5 if quick else 6.0, clock))
                    found = {
                        "device": device,
                        "ceilings": ceilings[-1],
                        "backends": backends,
                        "options": options,
                    }
                    for op, case, dtype in work:
                        advance(f"{op.name} {case.name} {str(dtype).removeprefix('torch.')}")
                        rows.append(measure(op, case, dtype, **found))
    except KeyboardInterrupt:  # what is measured is kept: a full run takes long
        if not rows:
            raise
        _common.complain("interrupted; what was measured until here is kept")
        interrupted = True
    settings = {**dataclasses.asdict(options), "pinned": pin, "allocator": allocator, "load_average": load}
    return document(rows, ceilings, device, settings), interrupted


def _show(data: dict[str, Any], out: Path | None, as_json: bool) -> None:
    from sgl_kernels.tools.bench import results
    from sgl_kernels.tools.page.html import rich_table

    written = []
    if out is not None and out.suffix:
        results.save(out, data)
        written.append(out)
    elif out is not None:
        for family, part in results.split_by_family(data).items():
            written.append(out / results.machine_slug(data["machine"]) / f"{family}.json")
            results.save(written[-1], part)
    if as_json:
        _common.emit_json(data)
    else:
        console = _common.console()
        machine = data["machine"]
        console.print(
            f"[bold]{machine['cpu']}[/bold], {machine['device']}, torch {data['versions']['torch']}"
        )
        console.print(rich_table(results.ceilings_table(data["ceilings"])))
        console.print(rich_table(results.table(data["results"], "")))
        for path in written:
            typer.echo(f"written: {path}")
    if any(why.startswith("FAILED") for row in data["results"] for why in row["skipped"].values()):
        raise typer.Exit(_common.FAILED)


def _dispatch(quick: bool, out: Path | None, as_json: bool) -> None:
    import json

    from sgl_kernels.tools.bench import dispatch as bench_dispatch
    from sgl_kernels.tools.bench.results import machine_slug
    from sgl_kernels.tools.page.html import rich_table

    data = bench_dispatch.measure(rounds=15 if quick else 200)
    if out is not None and not out.suffix:
        out = out / machine_slug(data["machine"]) / "dispatch.json"
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if as_json:
        _common.emit_json(data)
        return
    console = _common.console()
    console.print(rich_table(bench_dispatch.table(data)))
    if out is not None:
        typer.echo(f"written: {out}")
