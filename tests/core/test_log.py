"""The logger: once per key, never the root logger, silent when the application listens itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from sgl_kernels.core import log
from sgl_kernels.core.errors import ConfigError


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    level = log.logger.level
    log.forget_warnings()
    yield
    log.logger.setLevel(level)
    log.forget_warnings()


def test_warns_once_per_key(caplog: pytest.LogCaptureFixture) -> None:
    assert log.warn_once("a", "first %s")
    assert not log.warn_once("a", "again")
    assert log.warn_once("b", "other")
    assert [r.getMessage() for r in caplog.records] == ["first %s", "other"]
    assert {r.name for r in caplog.records} == {"sgl_kernels"}


def test_warns_once_across_threads(caplog: pytest.LogCaptureFixture) -> None:
    threads = [threading.Thread(target=log.warn_once, args=("t", "hello")) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("name, value", [("debug", 10), (" Info ", 20), ("WARNING", 30), ("CRITICAL", 50)])
def test_levels(name: str, value: int) -> None:
    log.set_level(name)
    assert log.logger.level == value


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'LOUD'; expected one of DEBUG"):
        log.set_level("LOUD")


def test_the_root_logger_is_left_alone() -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    log.set_level("DEBUG")
    log.warn_once("root", "x")
    assert (root.level, list(root.handlers)) == before


def test_speaks_on_stderr_only_while_nobody_else_listens(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    log.warn_once("one", "to stderr")
    assert capsys.readouterr().err == "sgl_kernels warning: to stderr\n"

    class Catch(logging.Handler):
        seen: list[str] = []  # noqa: RUF012

        def emit(self, record: logging.LogRecord) -> None:
            self.seen.append(record.getMessage())

    monkeypatch.setattr(root, "handlers", [Catch()])
    log.warn_once("two", "to the application")
    assert Catch.seen == ["to the application"]
    assert capsys.readouterr().err == ""


def test_a_silenced_application_stays_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log.set_level("ERROR")
    log.warn_once("quiet", "not shown")
    assert capsys.readouterr().err == ""
