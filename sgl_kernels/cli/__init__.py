"""The command line: `sgl-kernels COMMAND`."""

from __future__ import annotations

from typing import Annotated

import typer

from sgl_kernels.cli import _common, bench, config, docs, doctor, env, explain, names, parity, replay, support

HELP = """One kernel layer for torch: what runs where, why, how right and how fast.

Exit codes: 0 fine, 1 a check failed, 2 the command line or a setting cannot be used."""

app = typer.Typer(
    name="sgl-kernels",
    help=HELP,
    cls=_common.Group,
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


app.command("doctor")(doctor.doctor)
app.command("list")(names.list_names)
app.command("explain")(explain.explain)
app.command("env")(env.env)
app.add_typer(config.app, name="config")
app.command("parity")(parity.parity)
app.command("support-matrix")(support.support_matrix)
app.command("replay")(replay.replay)
app.command("bench")(bench.bench)
app.command("plots")(docs.plots)
app.command("docs")(docs.docs)


def main() -> None:
    """The console script."""
    app()
