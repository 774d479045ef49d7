"""Call logs: what each level says, in time to survive a crash, and never in the way of the call."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_kernels.core import log
from sgl_kernels.core.device import Device
from sgl_kernels.core.op import Cost, Op
from sgl_kernels.core.selection.verdict import Candidate, Selection
from sgl_kernels.core.settings import TraceSettings
from sgl_kernels.core.wrapping.trace import describe, statistics, traced, write

ROOT = str(Path(__file__).parents[3])


def add(x: torch.Tensor, y: torch.Tensor | None, alpha: float) -> torch.Tensor:
    return x if y is None else x + alpha * y


OP = Op(
    name="add",
    schema="add(Tensor x, Tensor? y=None, float alpha=1.0) -> Tensor",
    facts=lambda *args: (),
    reference=add,
    fake=add,
    check=lambda *args: None,
    cases=lambda: (),
    cost=lambda *args: Cost(0, 0),
)
SELECTION = Selection("add", (), Device("cpu"), "mine", "rank 7", (Candidate("mine", None, "rank 7"),))


def run_traced(capsys: pytest.CaptureFixture[str], level: int, *args: Any, run: Any = add) -> list[str]:
    """The lines of one call, without stamps and without those of binding."""
    call = traced(run, OP, SELECTION, TraceSettings(level=level))
    capsys.readouterr()
    call(*args)
    return unstamped(capsys.readouterr().out)


def unstamped(text: str) -> list[str]:
    return [re.sub(r"^\[[^]]*\] ", "", line) for line in text.splitlines()]


def test_binding_prints_the_selection(capsys: pytest.CaptureFixture[str]) -> None:
    traced(add, OP, SELECTION, TraceSettings(level=1))
    text = capsys.readouterr().out
    assert re.match(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \d+:\d{5}\] bound add/mine: rank 7\n", text)
    assert "    → mine" in text or "→ mine" in text


@pytest.mark.parametrize("level", [1, 2])
def test_level_1_is_the_name(capsys: pytest.CaptureFixture[str], level: int) -> None:
    assert run_traced(capsys, level, torch.ones(2), None, 1.0) == ["call add/mine"]


@pytest.mark.parametrize("level", [3, 4])
def test_level_3_adds_metadata(capsys: pytest.CaptureFixture[str], level: int) -> None:
    x = torch.ones(4, 6).t().requires_grad_()
    lines = run_traced(capsys, level, x, None, 0.5)
    assert lines[:4] == [
        "call add/mine",
        "    x      float32 (6, 4) on cpu, strides (1, 6), requires grad",
        "    y      None",
        "    alpha  0.5",
    ]
    assert re.fullmatch(r"returned add/mine after \d+\.\d{3} ms on the host", lines[4])
    assert lines[5] == "    out  float32 (6, 4) on cpu, strides (1, 6), requires grad"


@pytest.mark.parametrize("level", [5, 9])
def test_level_5_adds_statistics(capsys: pytest.CaptureFixture[str], level: int) -> None:
    lines = run_traced(capsys, level, torch.tensor([1.0, -3.0, float("nan"), float("inf")]), None, 1.0)
    assert lines[1].endswith("contiguous; min -3, max 1, mean -1, nan 1, inf 1")
    assert lines[-1].endswith("nan 1, inf 1")


def test_several_outputs_are_numbered(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run_traced(capsys, 3, torch.ones(2), None, 1.0, run=lambda x, y, a: (x, x.double()))
    assert lines[-2].startswith("    out0  float32") and lines[-1].startswith("    out1  float64")


def test_an_exception_is_logged_and_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*args: Any) -> Any:
        raise KeyboardInterrupt("stop")

    with pytest.raises(KeyboardInterrupt, match="stop"):
        run_traced(capsys, 1, torch.ones(2), None, 1.0, run=fail)
    assert unstamped(capsys.readouterr().out) == ["call add/mine", "raised add/mine: KeyboardInterrupt: stop"]


def test_the_result_is_what_the_kernel_returned(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = torch.ones(3, requires_grad=True), torch.ones(3)
    out = traced(add, OP, SELECTION, TraceSettings(level=5))(x, y, 2.0)
    assert torch.equal(out, torch.full((3,), 3.0)) and out.grad_fn is not None


@pytest.mark.parametrize(
    "value, expected",
    [
        (torch.tensor([True, False, True]), "2 of 3 true"),
        (torch.tensor([3, 1, 2]), "min 1, max 3, mean 2"),
        (torch.tensor(2**40, dtype=torch.int64), "min 1.09951e+12, max 1.09951e+12, mean 1.09951e+12"),
        (torch.tensor([1.0, 2.0], dtype=torch.bfloat16), "min 1, max 2, mean 1.5, nan 0, inf 0"),
        (torch.tensor([1.0, 2.0], dtype=torch.float16), "min 1, max 2, mean 1.5, nan 0, inf 0"),
        (torch.full((1000,), 60000.0, dtype=torch.float16), "min 60000, max 60000, mean 60000, nan 0, inf 0"),
        (torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn), "min 1, max 2, mean 1.5, nan 0"),
        (torch.tensor([3 + 4j]), "min 5, max 5, mean 5, nan 0, inf 0"),
        (torch.tensor([float("nan")]), "nothing finite, nan 1, inf 0"),
        (torch.zeros(0, 3), "empty"),
        (torch.empty(3, device="meta"), "no statistics: meta tensor"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_statistics(value: torch.Tensor, expected: str) -> None:
    assert statistics(value).startswith(expected)


def test_statistics_that_fail_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch, "aminmax", fail)
    assert statistics(torch.ones(3)) == "no statistics: OutOfMemoryError"


def test_statistics_during_a_graph_capture_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl_kernels.core.wrapping.trace.is_capturing", lambda: True)
    assert statistics(torch.ones(3)) == "no statistics: a CUDA graph is being captured"


def test_long_values_are_cut() -> None:
    assert len(describe("x" * 1000, 5)) == 200
    assert describe(None, 5) == "None"


def test_files_get_the_process_id_and_their_folders(tmp_path: Path) -> None:
    dest = str(tmp_path / "a" / "b" / "log.%i.txt")
    write(dest, "one\n")
    write(dest, "two\n")
    assert (tmp_path / "a" / "b" / f"log.{os.getpid()}.txt").read_text() == "one\ntwo\n"


def test_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    write("stderr", "x\n")
    assert capsys.readouterr() == ("", "x\n")


@pytest.mark.parametrize("kind", ["full", "folder", "below a file", "closed"])
def test_a_log_that_cannot_be_written_is_one_warning(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.forget_warnings()
    (tmp_path / "file").write_text("")
    dest = {"full": "/dev/full", "folder": str(tmp_path), "below a file": str(tmp_path / "file" / "x")}.get(
        kind, "stdout"
    )
    if kind == "full" and not os.path.exists(dest):
        pytest.skip("needs /dev/full")
    if kind == "closed":
        stream = open(os.devnull, "w")  # noqa: SIM115
        stream.close()
        monkeypatch.setattr(sys, "stdout", stream)
    call = traced(add, OP, SELECTION, TraceSettings(level=3, dest=dest))
    for _ in range(3):
        assert torch.equal(call(torch.ones(2), None, 1.0), torch.ones(2))
    assert [r.getMessage() for r in caplog.records if "cannot be written" in r.getMessage()] == [
        r.getMessage() for r in caplog.records
    ]
    assert len(caplog.records) == 1 and "calls go on without it" in caplog.text


def python(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("SGLANG_", "SGL_KERNELS_"))}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=keep | environ,
        timeout=120,
    )


def test_the_variables_switch_it_on(tmp_path: Path) -> None:
    done = python(
        """
        import torch, sgl_kernels
        sgl_kernels.silu_mul(torch.ones(2, 4), None)
        """,
        SGLANG_KERNEL_API_LOGLEVEL="3",
        SGLANG_KERNEL_API_LOGDEST=str(tmp_path / "%i.log"),
    )
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.iterdir()
    assert "call silu_mul/" in file.read_text() and "float32 (2, 4) on cpu" in file.read_text()
    assert done.stdout == ""


def test_off_means_nothing_is_wrapped() -> None:
    done = python(
        """
        import sys, torch, sgl_kernels
        sgl_kernels.silu_mul(torch.ones(2, 4), None)
        print([m for m in sys.modules if m in ("sgl_kernels.core.wrapping.trace", "sgl_kernels.core.wrapping.dump")])
        """,
        SGLANG_KERNEL_API_LOGLEVEL="0",
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_writes_to_a_file_of_its_own(tmp_path: Path) -> None:
    done = python(
        """
        import os, torch, sgl_kernels
        x = torch.ones(2, 4)
        sgl_kernels.silu_mul(x, None)
        child = os.fork()
        sgl_kernels.silu_mul(x, None)
        if child:
            os.waitpid(child, 0)
            print(os.getpid(), child)
        else:
            os._exit(0)
        """,
        SGLANG_KERNEL_API_LOGLEVEL="1",
        SGLANG_KERNEL_API_LOGDEST=str(tmp_path / "%i.log"),
    )
    parent, child = done.stdout.split()
    assert (tmp_path / f"{parent}.log").read_text().count("call silu_mul") == 2
    assert (tmp_path / f"{child}.log").read_text().count("call silu_mul") == 1


def test_a_crash_leaves_the_inputs_in_the_log(tmp_path: Path) -> None:
    done = python(
        f"""
        import ctypes, sys, torch
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_trace import OP, SELECTION
        from sgl_kernels.core.settings import TraceSettings
        from sgl_kernels.core.wrapping.trace import traced
        crash = lambda *args: ctypes.string_at(0)
        settings = TraceSettings(level=10, dest={str(tmp_path / "log")!r}, dump_dir={str(tmp_path / "dumps")!r})
        traced(crash, OP, SELECTION, settings)(torch.arange(3.0), None, 1.0)
        """
    )
    assert done.returncode < 0
    assert "min 0, max 2, mean 1" in (tmp_path / "log").read_text()
    (folder,) = (tmp_path / "dumps").iterdir()
    from sgl_kernels.tools.debug.replay import load_dump

    stored = load_dump(str(folder))
    assert stored.status == "inputs saved" and stored.outputs == ()
    assert torch.equal(stored.args[0], torch.arange(3.0))
