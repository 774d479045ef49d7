"""Every command, put together."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

from sgl_kernels.cli import _errors, bench, config, doctor, env, explain, names, parity, replay

HELP = """One kernel layer for torch: what runs where, why, how right and how fast.

Exit codes: 0 fine, 1 a check failed, 2 the command line, a setting or the output cannot be used, 130 interrupted."""

app = typer.Typer(
    name="sgl-kernels",
    help=HELP,
    cls=_errors.Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from sgl_kernels._version import __version__

        typer.echo(f"sgl_kernels {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    ctx.obj = {"debug": debug}


_command = functools.partial(app.command, cls=_errors.Command)
_command("doctor")(doctor.doctor)
_command("list")(names.list_names)
_command("explain")(explain.explain)
_command("env")(env.env)
app.add_typer(config.app, name="config")
_command("parity")(parity.parity)
_command("replay")(replay.replay)
_command("bench")(bench.bench)
