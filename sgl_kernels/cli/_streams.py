"""Standard output and error that take what we print: any encoding, a closed pipe, a full disk, or nothing at all."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from typing import Any

UNUSABLE = 2
PLAIN = {
    "\N{RIGHTWARDS ARROW}": "->",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "-",
    "\N{MINUS SIGN}": "-",
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{BULLET}": "*",
    "\N{MIDDLE DOT}": "*",
    "\N{GREATER-THAN OR EQUAL TO}": ">=",
    "\N{LESS-THAN OR EQUAL TO}": "<=",
    "\N{MICRO SIGN}": "u",
    "\N{BOX DRAWINGS LIGHT VERTICAL}": "|",
    "\N{BOX DRAWINGS LIGHT HORIZONTAL}": "-",
}
ERRORS = "sgl_kernels.plain"


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    text = "".join(PLAIN.get(c, "") or c.encode("ascii", "backslashreplace").decode() for c in found)
    return text, error.end


codecs.register_error(ERRORS, _plain)


class OutputError(OSError):
    """Standard output cannot be written, and not because its reader has left."""


class _Pipe(io.FileIO):
    """A file descriptor whose reader may leave (`| head`): the rest is dropped, and the command ends as it would.

    Standard error drops what cannot be written for any other reason too: the exit code has to do.
    """

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if isinstance(error, BrokenPipeError) or self.fileno() == 2:
                return len(data)
            raise OutputError(error.errno, f"standard output cannot be written: {error.strerror}") from error


def prepare() -> None:
    """Exchange the process's streams for forgiving ones. Once, before anything is printed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us: >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open for as long as the process lives
            continue
        if isinstance(stream, io.TextIOWrapper):
            stream.flush()
            raw = _Pipe(stream.fileno(), "wb", closefd=False)
            forgiving = io.TextIOWrapper(
                io.BufferedWriter(raw),
                encoding=stream.encoding,
                errors=ERRORS,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, forgiving)


def forgive(stream: Any) -> None:
    """Characters that the stream's encoding lacks become plain ones instead of an exception."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors != ERRORS:
        stream.reconfigure(errors=ERRORS)


def say(message: str) -> None:
    """One line on standard error; nothing, where that is not to be had either."""
    with contextlib.suppress(OSError):
        print(f"error: {message}", file=sys.stderr, flush=True)


def finish(code: int) -> int:
    """Everything printed is out: the exit code, which a standard output that is full turns into a failure."""
    try:
        sys.stdout.flush()
    except OSError as error:
        say(error.strerror or str(error))
        code = code or UNUSABLE
    sys.stderr.flush()
    return code
