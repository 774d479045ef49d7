"""python -m benchmarks.pages: what is written into the documentation from the registry and the committed results."""

from __future__ import annotations

import typer

from benchmarks.pages import commands, support
from sgl_kernels.cli import _errors

HELP = """The pages of this checkout: generated tables, docs/performance.md, pictures, the support matrix.

Exit codes: 0 fine, 1 a page is stale or a check failed, 2 the command line or a file cannot be used."""

app = typer.Typer(
    name="python -m benchmarks.pages",
    help=HELP,
    cls=_errors.Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("docs", cls=_errors.Command)(commands.docs)
app.command("plots", cls=_errors.Command)(commands.plots)
app.command("support-matrix", cls=_errors.Command)(support.support_matrix)

if __name__ == "__main__":
    app(prog_name="python -m benchmarks.pages")
