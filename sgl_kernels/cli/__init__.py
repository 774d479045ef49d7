"""The command line: `sgl-kernels COMMAND`. Importing this needs nothing but Python; the commands are in `_app`."""

from __future__ import annotations

import sys
from typing import Any


def main() -> None:
    """The console script."""
    from sgl_kernels.cli import _streams

    _streams.prepare()
    try:
        code = _run()
    except KeyboardInterrupt:
        _streams.say("interrupted")
        code = 130
    sys.exit(_streams.finish(code))


def _run() -> int:
    from sgl_kernels import _needs, _problem
    from sgl_kernels.cli import _bare, _streams

    problems = [_problem] if _problem else []
    problems += [text for _, text in _needs.missing(_needs.COMMAND_LINE)]
    if problems:
        return _bare.run(sys.argv[1:], problems)
    try:
        from sgl_kernels.cli._app import app
    except Exception as error:  # a package of ours, or one we need, that is there and broken
        if "--debug" in sys.argv[1:]:
            raise
        return _bare.run(sys.argv[1:], [f"sgl_kernels cannot be loaded: {type(error).__name__}: {error}"])
    try:
        app()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except OSError as error:  # of --help and --version, which no command prints
        _streams.say(error.strerror or str(error))
        return 2
    return 0


def __getattr__(name: str) -> Any:
    """`app`, when it is asked for: it imports typer and every command."""
    if name == "app":
        from sgl_kernels.cli._app import app

        return app
    raise AttributeError(f"module 'sgl_kernels.cli' has no attribute {name!r}")
