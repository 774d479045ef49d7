"""What every command shares: options, consoles, JSON, progress, and errors as one message."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
import typer.core

from sgl_kernels.core.errors import ConfigError, UnsupportedError
from sgl_kernels.core.registry import registry

OK, FAILED, USAGE = 0, 1, 2
WIDE = 160  # columns when the output is a pipe or a file: rich's own 80 would fold every table

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


class Group(typer.core.TyperGroup):
    """A group whose commands answer what users got wrong with one red message and exit code 2 or 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except (ConfigError, UnsupportedError, ValueError, TypeError, OSError) as error:
            root = ctx.find_root()
            if isinstance(error, BrokenPipeError) or (root.obj or {}).get("debug"):
                raise
            complain(str(error))
            raise typer.Exit(FAILED if isinstance(error, UnsupportedError) else USAGE) from None


def complain(message: str) -> None:
    """The one red message of a failed command, on stderr."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text.assemble(("error: ", "bold red"), (message, "red")))


def console(stderr: bool = False) -> Any:
    """A console as wide as the terminal, and wide enough for tables where there is none."""
    from rich.console import Console

    terminal = sys.stderr.isatty() if stderr else sys.stdout.isatty()
    width = None if terminal or os.environ.get("COLUMNS") else WIDE
    return Console(stderr=stderr, width=width, highlight=False)


def emit_json(data: Any) -> None:
    """Plain data on stdout; infinities and NaN become strings, because JSON has neither."""
    typer.echo(json.dumps(_finite(data), indent=2, ensure_ascii=False))


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


def at_least(option: str, value: float | None, low: float) -> None:
    """A number is not below `low`."""
    if value is not None and not value >= low:
        raise typer.BadParameter(f"{option} is {value:g}, expected a number of at least {low:g}")


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
    """Backend names and aliases of a comma list, resolved."""
    from sgl_kernels.core.names import resolve_names

    if not text:
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
    """A torch device that exists here."""
    import torch

    try:
        device = torch.device(text)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        cause = (str(error).strip().splitlines() or ["torch gave no reason"])[0]
        raise typer.BadParameter(
            f"{option} is {text!r}, and no tensor can be put there: {cause} Expected a torch device of this "
            "machine, such as cpu or cuda:0; `sgl-kernels doctor` lists them, and `explain` asks about others"
        ) from None
    return device
