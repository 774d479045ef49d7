"""What users got wrong, and what went wrong with files, as one red message and an exit code; never a traceback."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import typer
import typer.core

from sgl_kernels.cli import _streams
from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.selection.verdict import UnsupportedError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
LONGEST = 2000  # of a message: a value of a million letters is not printed back
EXPECTED = (ConfigError, UnsupportedError, ValueError, TypeError, OSError, ImportError)


class Group(typer.core.TyperGroup):
    """Commands. Output that cannot be encoded is spelled otherwise, and Ctrl-C is a word and exit code 130."""

    def main(self, *args: Any, **more: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            _streams.forgive(stream)
        return super().main(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            if _debug(ctx):
                raise
            complain("interrupted")
            raise typer.Exit(INTERRUPTED) from None


class Command(typer.core.TyperCommand):
    """A command: no value may be empty, and every error names the option it came from."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = {} if ctx.resilient_parsing else self._refuse_empty(ctx, list(args))
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            value = given.get(getattr(error.param, "name", None) or "")
            if isinstance(value, str) and value not in error.message:
                error.message = f"it is {shortened(repr(value))}. {error.message}"
            raise

    def _refuse_empty(self, ctx: Any, args: list[str]) -> dict[str, Any]:
        # Before values are read: an empty path would be the working directory, an empty name no name at all.
        given, _, _ = self.make_parser(ctx).parse_args(args=args)
        for param in self.params:
            values = given.get(param.name)
            for value in values if isinstance(values, list | tuple) else [values]:
                if isinstance(value, str) and not value.strip():
                    raise typer.BadParameter(f"{label(param)} is {value!r}, expected a value", ctx=ctx)
        return dict(given)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = shortened(self._named(ctx, error.message))
            raise
        except Exception as error:
            if _debug(ctx) or not _is_ours(error):
                raise
            complain(self._message(ctx, error))
            raise typer.Exit(FAILED if isinstance(error, UnsupportedError) else USAGE) from None

    def _message(self, ctx: Any, error: Exception) -> str:
        if isinstance(error, _streams.OutputError):
            return error.strerror or str(error)
        if isinstance(error, ModuleNotFoundError) and error.name:
            return (
                f"{error.name} is not installed, which `{ctx.command_path}` needs: pip install {error.name}"
            )
        text = str(error).strip() or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            text = f"{error.strerror}: {str(error.filename)!r}" if error.filename else error.strerror
        text = self._named(ctx, text)
        if not isinstance(error, EXPECTED):
            text = f"{type(error).__name__}: {text} (unexpected: `sgl-kernels --debug` shows where)"
        return text

    def _named(self, ctx: Any, text: str) -> str:
        """An error that names no option begins with the one whose value it repeats; the longest value, if several."""
        if any(label(param) in text for param in self.params):
            return text
        found = ""
        repeated = ""
        for param in self.params:
            value = ctx.params.get(param.name)
            value = "" if value is None or value == param.default or isinstance(value, bool) else str(value)
            if len(value) > len(repeated) and value in text:
                found, repeated = f"{label(param)}: ", value
        return found + text


def label(param: Any) -> str:
    """How a parameter is called on the command line: '--shape', or 'FILE'."""
    if isinstance(param, typer.core.TyperArgument):
        return str(param.name).upper()
    return str(max(param.opts, key=len))


def shortened(message: str) -> str:
    """A message without the middle of a value of thousands of letters."""
    return message if len(message) <= LONGEST else f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"


def _is_ours(error: Exception) -> bool:
    """Whether an error is for us to tell; typer's own (usage errors, exits) it tells itself."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return not names & {"ClickException", "Exit", "Abort"}


def _debug(ctx: Any) -> bool:
    return bool((ctx.find_root().obj or {}).get("debug"))


def complain(message: str) -> None:
    """The one red message of a failed command, on stderr."""
    from rich.console import Console
    from rich.text import Text

    message = shortened(message)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with contextlib.suppress(OSError):  # where nobody reads it the exit code has to do
        console.print(Text.assemble(("error: ", "bold red"), (message, "red")))
