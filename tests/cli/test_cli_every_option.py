"""Every command with every option it has, found in the app itself: no value anybody can type gives a traceback."""

from __future__ import annotations

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks.pages.__main__ import app as pages
from sgl_kernels.cli import app
from sgl_kernels.cli._errors import label

ROOT = typer.main.get_command(app)
for _name, _command in typer.main.get_command(pages).commands.items():
    ROOT.add_command(_command, _name)  # a checkout's own commands are held to the same


runner = CliRunner(env={"COLUMNS": "400", "TERMINAL_WIDTH": "400", "NO_COLOR": "1"})

LINES = {
    # a line of each command that works here, is quick, and writes nowhere but in its own folder
    "doctor": "doctor --no-probe",
    "list": "list ops",
    "explain": "explain attention --shape 1,64,4,64",
    "env": "env --set",
    "config check": "config check cpu",
    "config show": "config show --set",
    "parity": "parity --op gelu_tanh --backend torch --tag smoke --dtype fp32 --seed 1",
    "support-matrix": "support-matrix --no-run --out page.md",
    "replay": "replay dump",
    "bench": "bench gelu_tanh --dtype fp32 --backend torch --quick --no-check",
    "plots": "plots --results results",
    "docs": "docs --root checkout --check",
}
VALUES = {
    "empty": "",
    "nonsense": "no such thing",
    "huge number": "9" * 40,
    "scientific": "1e23",
    "not a number": "nan",
    "negative": "-1",
    "long": "x" * 5000,
    "not ASCII": "\u2192\u00e9",
    "not UTF-8": "\udcff\udcfe",
    "markup": "[/bold]",
    "a folder": "results",
    "full": "/dev/full",
    "below a file": "a_file/below",
    "nowhere": "/nowhere/at/all",
    "equals": "=",
    "meta": "meta",
}


def _commands():
    """(line, parameters) of every command, sub-commands included."""

    def walk(command, path):
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, (*path, name))
        if not getattr(command, "commands", None):
            yield " ".join(path), command

    return dict(walk(ROOT, ()))


COMMANDS = _commands()
OPTIONS = [
    (name, param.name)
    for name, command in COMMANDS.items()
    for param in command.params
    if param.name not in ("help", "ctx")
]


def test_every_command_has_a_line_here():
    assert set(LINES) == set(COMMANDS), (
        "a new command: give it a line in LINES, so that its options are tried"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the lines name: a dump, an empty checkout, results, a file."""
    import sgl_kernels
    from sgl_kernels.core.dispatch import Dispatcher, activate
    from sgl_kernels.core.settings import Settings, TraceSettings
    from sgl_kernels.core.wrapping import dump as dumps  # noqa: F401 - registers the format

    root = tmp_path_factory.mktemp("cli")
    trace = TraceSettings(level=10, dest=str(root / "trace.log"), dump_dir=str(root / "dumps"))
    with activate(Dispatcher(Settings(trace=trace))):
        sgl_kernels.gelu_tanh(torch.randn(4, 64), backend="torch")
    (call,) = (root / "dumps").rglob("call.json")
    call.parent.rename(root / "dump")
    (root / "results").mkdir()
    (root / "checkout" / "docs").mkdir(parents=True)
    (root / "a_file").write_text("text\n")
    return root


@pytest.fixture(autouse=True)
def quick(folder, monkeypatch):
    """In that folder; and what measures for seconds is taken as measured."""
    from benchmarks.pages import support_matrix
    from sgl_kernels.cli import bench
    from sgl_kernels.tools.doctor import diagnosis as doctor

    monkeypatch.chdir(folder)
    # or the app would be put together anew for every line: that is most of the time
    monkeypatch.setattr("typer.testing._get_command", lambda app: ROOT, raising=False)
    empty = {
        "results": [],
        "ceilings": [],
        "machine": {"cpu": "a", "device": "cpu"},
        "versions": {"torch": "2"},
    }
    monkeypatch.setattr(doctor, "probe_backends", lambda names, timeout: {})
    monkeypatch.setattr(support_matrix, "gather", lambda registry, where, evidence, advance: (evidence, []))
    monkeypatch.setattr(bench, "_measure", lambda *args: (empty, False))


def _line(name: str, param) -> list[str]:
    """The line of a command without what it says about `param`, which is tried with another value."""
    words, kept = LINES[name].split(), []
    if label(param).isupper():  # an argument: the positional words after the command
        start = len(name.split())
        return words[:start] + words[start + 1 :] if len(words) > start and words[start][0] != "-" else words
    while words:
        word = words.pop(0)
        if word in param.opts or word in param.secondary_opts:
            if words and not words[0].startswith("-") and not getattr(param, "is_flag", False):
                words.pop(0)
            continue
        kept.append(word)
    return kept


def _check(result, named: str) -> None:
    text = " ".join((result.stderr + result.stdout).replace("│", " ").split())
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (0, 1, 2), text
    assert "Traceback" not in text and "PosixPath" not in text and "unexpected" not in text, text
    assert "\x1b[" not in result.stdout, "colour without a terminal"
    if result.exit_code == 2:
        assert named in text, f"{named} is not named in: {text}"
        assert len(text) < 7000, "a value of any length is not printed back"


@pytest.mark.parametrize("name, parameter", OPTIONS, ids=[" ".join(pair) for pair in OPTIONS])
def test_any_value_is_taken_or_answered_by_its_name(name, parameter):
    param = next(p for p in COMMANDS[name].params if p.name == parameter)
    line = _line(name, param)
    if getattr(param, "is_flag", False):
        _check(runner.invoke(app, [*line, max(param.opts, key=len)]), label(param))
        return
    for kind, value in VALUES.items():
        if label(param).isupper():
            start = len(name.split())
            given = [*line[:start], *line[start:], "--", value]
        else:
            given = [*line, f"{label(param)}={value}"]
        result = runner.invoke(app, given)
        _check(result, label(param))
        if not value.strip():
            assert result.exit_code == 2, f"{kind}: an empty value counts for something"


@pytest.mark.parametrize("name", LINES)
def test_the_line_itself_works_narrow_and_as_json(name):
    code = 1 if name == "docs" else 0  # an empty checkout lacks its page
    for environment in (
        {"COLUMNS": "20"},
        {"COLUMNS": "1"},
        {"COLUMNS": "x"},
        {"FORCE_COLOR": "1"},
        {"TERM": "dumb"},
    ):
        result = runner.invoke(app, LINES[name].split(), env=environment)
        assert result.exit_code == code, (environment, result.output, result.stderr, result.exception)
    data = runner.invoke(app, [*LINES[name].split(), "--json"])
    assert data.exit_code == code, (data.output, data.stderr)
    json.loads(data.stdout)


@pytest.mark.parametrize("name", LINES)
def test_ctrl_c_is_a_word_and_130(name, monkeypatch):
    def interrupted(*args, **more):
        raise KeyboardInterrupt

    command = COMMANDS[name]
    monkeypatch.setattr(type(command), "parse_args", lambda self, ctx, args: interrupted())
    result = runner.invoke(app, LINES[name].split())
    assert result.exit_code == 130 and "Traceback" not in result.stderr


@pytest.mark.parametrize("name", LINES)
def test_a_package_that_is_not_there_is_named(name, monkeypatch):
    def missing(self, ctx):
        raise ModuleNotFoundError("No module named 'absent'", name="absent")

    monkeypatch.setattr("typer.core.TyperCommand.invoke", missing, raising=False)
    result = runner.invoke(app, LINES[name].split())
    assert result.exit_code == 2 and "pip install absent" in result.stderr
