"""One logger, quiet by default, that never touches the root logger."""

from __future__ import annotations

import logging
import sys
import threading

from .errors import ConfigError

logger = logging.getLogger("sgl_kernels")

LEVELS: tuple[str, ...] = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class _AloneHandler(logging.NullHandler):
    """Writes to stderr only while nobody else would: no other handler on our logger or above it.

    A bare NullHandler would swallow the one warning that says a preference could not be met, because
    its presence turns off Python's handler of last resort. As soon as the application configures
    logging, this handler does nothing and records go where the application wants them, once.
    """

    def handle(self, record: logging.LogRecord) -> bool:
        if _has_other_handlers():
            return False
        sys.stderr.write(f"sgl_kernels {record.levelname.lower()}: {record.getMessage()}\n")
        return True


def _has_other_handlers() -> bool:
    current: logging.Logger | None = logger
    while current is not None:
        if any(not isinstance(h, logging.NullHandler) for h in current.handlers):
            return True
        current = current.parent if current.propagate else None
    return False


if not any(isinstance(h, _AloneHandler) for h in logger.handlers):
    logger.addHandler(_AloneHandler())

_seen: set[str] = set()
_lock = threading.Lock()


def set_level(name: str) -> None:
    """Set the level of our logger: DEBUG, INFO, WARNING, ERROR or CRITICAL, in any case."""
    level = name.strip().upper()
    if level not in LEVELS:
        raise ConfigError(f"logging level is {name!r}; expected one of {', '.join(LEVELS)}")
    logger.setLevel(level)


def warn_once(key: str, message: str) -> bool:
    """Log `message` as a warning the first time `key` is seen. Returns whether it was logged."""
    with _lock:
        if key in _seen:
            return False
        _seen.add(key)
    logger.warning("%s", message)
    return True


def forget_warnings() -> None:
    """Let every `warn_once` key speak again; for tests and long-lived servers that reload settings."""
    with _lock:
        _seen.clear()
