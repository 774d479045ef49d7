"""What every command shares: options and how they are read, consoles, JSON and progress."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from sgl_kernels.cli._errors import complain as complain
from sgl_kernels.core import environment
from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.registry import registry

OK, FAILED, USAGE = 0, 1, 2
WIDE = 160  # columns when the output is a pipe or a file: rich's own 80 would fold every table

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def console(stderr: bool = False) -> Any:
    """A console as wide as the terminal, and wide enough for tables where there is none."""
    from rich.console import Console

    terminal = sys.stderr.isatty() if stderr else sys.stdout.isatty()
    width = None if terminal or environment.variable("COLUMNS") else WIDE
    return Console(stderr=stderr, width=width, highlight=False)


def emit_json(data: Any) -> None:
    """Plain data on stdout; infinities and NaN become strings, because JSON has neither.

    Letters that the output's encoding lacks are written as JSON's own escapes, so nothing is lost.
    """
    text = json.dumps(_finite(data), indent=2, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeError:
        text = json.dumps(_finite(data), indent=2)
    typer.echo(text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not float("-inf") < value < float("inf"):
        return str(value)
    return value


@contextmanager
def progress(total: int, what: str, quiet: bool = False) -> Iterator[Any]:
    """A progress bar on stderr; the block calls the value it gets with a description after each step."""
    if quiet or not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda text: bar.update(task, advance=1, description=text)


def one_of(option: str, value: str, known: Iterable[str]) -> str:
    """`value` if it is known, else a usage error that names the option and the nearest match."""
    names = list(known)
    if value in names:
        return value
    near = difflib.get_close_matches(value, names, 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise typer.BadParameter(f"{option} is {value!r}{hint} Expected one of: {', '.join(names)}")


def within(option: str, value: float | None, low: float, high: float) -> None:
    """A number is neither below `low` nor above `high`, nor is it NaN."""
    if value is None or low <= value <= high:
        return
    shown = f"{value:g}" if isinstance(value, float) else str(value)[:40]
    bound = f"of at least {low:g}" if value < low else f"from {low:g} to {high:g}"
    raise typer.BadParameter(f"{option} is {shown}, expected a number {bound}")


def once(option: str, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """(name, value) pairs of a repeated option as a dict. The same name twice is an error: one would be ignored."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise typer.BadParameter(f"{option} names {name!r} twice, expected one value for it")
        found[name] = value
    return found


def machine(option: str, text: str) -> Any:
    """A device that need not be here, from 'cuda:sm90'."""
    from sgl_kernels.core.device import parse_device

    try:
        return parse_device(text)
    except ConfigError as error:
        raise typer.BadParameter(f"--{error}" if option == "--device" else f"{option}: {error}") from None


def write(option: str, path: Path, text: str) -> None:
    """Write a file that an option names."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"{option} is '{path}', which cannot be written: {error.strerror}") from None


def target_file(option: str, path: Path | None) -> None:
    """A file can be written there: its folder exists, and it is no folder itself."""
    if path is None:
        return
    if path.is_dir():
        raise typer.BadParameter(f"{option} is '{path}', which is a folder; expected the name of a file")
    if not path.parent.is_dir():
        raise typer.BadParameter(
            f"{option} is '{path}', and {path.parent} is no directory; create it first, or name another"
        )


def target_folder(option: str, path: Path | None) -> None:
    """Files can be put there: what exists of the path are folders."""
    if path is None:
        return
    standing = next((p for p in (path, *path.parents) if p.exists()), Path())
    if not standing.is_dir():
        raise typer.BadParameter(f"{option} is '{path}', and {standing} is no folder; name another")


def split_names(text: str | None) -> tuple[str, ...]:
    """'a, b,c' as names; None gives none."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def op_names(option: str, names: Iterable[str]) -> tuple[str, ...]:
    """Op names, checked; a family name ('norm') stands for its ops."""
    found: dict[str, None] = {}
    families = {op.family for op in registry.ops().values() if op.family}
    for name in names:
        members = [op.name for op in registry.ops().values() if op.family == name]
        if members and name not in registry.ops():
            found |= dict.fromkeys(members)
        else:
            found[one_of(option, name, (*registry.ops(), *sorted(families)))] = None
    return tuple(found)


def backend_names(option: str, text: str | None) -> tuple[str, ...]:
    """Backend names and aliases of a comma list, resolved; None gives none."""
    from sgl_kernels.core.names.backends import resolve_names

    if text is None:
        return ()
    try:
        return resolve_names(text, registry.backends())
    except ConfigError as error:
        raise typer.BadParameter(f"{option} is {text!r}: {error}") from None


def dtype_of(option: str, text: str) -> Any:
    """A torch dtype from 'bf16', 'bfloat16', 'fp32', ..."""
    from sgl_kernels.core.op import DTYPES

    short = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "f16": "float16"}
    short |= {"fp32": "float32", "f32": "float32", "float": "float32", "fp64": "float64", "double": "float64"}
    name = text.strip().lower().removeprefix("torch.")
    return DTYPES[one_of(option, short.get(name, name), DTYPES)]


def dtypes_of(option: str, text: str | None) -> tuple[Any, ...]:
    """Several dtypes of a comma list."""
    return tuple(dtype_of(option, part) for part in split_names(text))


def torch_device(option: str, text: str) -> Any:
    """A torch device that exists here and holds numbers: `meta` does not."""
    import torch

    try:
        device = torch.device(text)
        torch.ones(1, device=device).item()
    except Exception as error:  # of a backend that is not there torch raises half a dozen kinds
        cause = (str(error).strip().splitlines() or ["torch gave no reason"])[0]
        raise typer.BadParameter(
            f"{option} is {text!r}, and no numbers can be put there: {cause.rstrip('.')}. Expected a torch device "
            "of this machine, such as cpu or cuda:0; `sgl-kernels doctor` lists them, and `explain` asks about others"
        ) from None
    return device
