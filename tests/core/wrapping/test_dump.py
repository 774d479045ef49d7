"""Dumps and their replay: exact, within budget, filtered, and never in the way of the call."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import sgl_kernels
from sgl_kernels.core import log
from sgl_kernels.core.device import Device
from sgl_kernels.core.dispatch import activate, current
from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.registry import registry
from sgl_kernels.core.selection.verdict import Selection, UnsupportedError
from sgl_kernels.core.settings import Settings, TraceSettings
from sgl_kernels.core.wrapping import dump
from sgl_kernels.tools.debug.replay import compare, load_dump, replay, restore


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    log.forget_warnings()
    dump.budget.spent.clear()
    yield


def call(tmp_path: Path, function: Any, *args: Any, level: int = 10, **trace: Any) -> Any:
    """`function` with dumps below tmp_path/dumps and the log in tmp_path/log."""
    settings = TraceSettings(level=level, dest=str(tmp_path / "log"), dump_dir=str(tmp_path / "dumps"))
    settings = TraceSettings(**{f: trace.get(f, getattr(settings, f)) for f in settings.__dataclass_fields__})
    base = current().settings
    with activate(current().derive(base.replace(trace=settings))):
        return function(*args)


def folders(tmp_path: Path) -> list[Path]:
    root = tmp_path / "dumps"
    return sorted(root.iterdir()) if root.exists() else []


def attention(q: torch.Tensor) -> torch.Tensor:
    return sgl_kernels.attention(q, q, q, is_causal=True, scale=0.5, window_size=(2, 0))


def test_a_dump_holds_the_call_and_its_result(tmp_path: Path) -> None:
    q = torch.randn(1, 5, 2, 8, dtype=torch.bfloat16)
    out = call(tmp_path, attention, q)
    (folder,) = folders(tmp_path)
    assert f"_{os.getpid()}_attention_" in folder.name
    assert {p.name for p in folder.iterdir()} == {"call.json", "inputs.safetensors", "outputs.safetensors"}
    record = json.loads((folder / "call.json").read_text())
    assert record["status"] == "completed" and record["op"] == "attention"
    assert record["selection"]["chosen"] == record["backend"] and record["table"]
    assert set(record["versions"]) == {"sgl_kernels", "torch", "python"}
    stored = load_dump(str(folder))
    assert all(torch.equal(a, q) and a.dtype is q.dtype for a in stored.args[:3])
    assert stored.args[3:] == (None, True, "bottom_right", 0.5, 2, 0, 0.0)
    assert torch.equal(stored.outputs[0], out)


def test_replay_is_exact_and_judges_both_results(tmp_path: Path) -> None:
    call(tmp_path, attention, torch.randn(1, 5, 2, 8))
    (folder,) = folders(tmp_path)
    report = replay(str(folder))
    against = {c.what: c for c in report.comparisons}
    assert against["out0, replay against stored"].equal
    for what in ("replay", "stored"):
        assert 0 < against[f"out0, {what} against float64 reference"].relative_l2 < 1e-5
    assert report.recorded_backend == report.backend and "out0, replay against stored: equal" in str(report)
    json.dumps(report.to_dict())
    assert len(replay(str(folder), reference=False).comparisons) == 1
    assert replay(str(folder), backend="torch").backend == "torch"
    with pytest.raises(UnsupportedError):
        replay(str(folder), backend="fa3" if not torch.cuda.is_available() else "mlx")
    assert replay(str(folder), device="cpu").device == "cpu"
    with pytest.raises(ConfigError, match="device is 'cude'; expected one of cuda"):
        replay(str(folder), device="cude")
    if not torch.xpu.is_available():
        with pytest.raises(ConfigError, match="which this machine does not have"):
            replay(str(folder), device="xpu")
    assert len(folders(tmp_path)) == 1, "a replay dumps nothing"


def test_strides_views_and_gradients_come_back(tmp_path: Path) -> None:
    x = torch.randn(6, 4).t().requires_grad_()
    weight = torch.randn(1).expand(6)
    call(tmp_path, sgl_kernels.rms_norm, x, weight)
    stored = load_dump(str(folders(tmp_path)[0]))
    assert stored.args[0].stride() == (1, 4) and stored.args[0].requires_grad
    assert stored.args[1].stride() == (0,) and torch.equal(stored.args[1], weight)
    assert replay(stored.folder).comparisons[0].equal


def test_shared_memory_and_several_outputs(tmp_path: Path) -> None:
    def lse(q: torch.Tensor) -> Any:
        return sgl_kernels.attention_lse(q, q[:, :2], q[:, :2])

    call(tmp_path, lse, torch.randn(1, 4, 2, 8))
    (folder,) = folders(tmp_path)
    assert len(load_dump(str(folder)).outputs) == 2
    assert [c.equal for c in replay(str(folder)).comparisons[:2]] == [True, True]


@pytest.mark.parametrize(
    "include, exclude, expected",
    [
        ((), (), {"attention", "rms_norm"}),
        (("rms_norm",), (), {"rms_norm"}),
        (("*norm*",), (), {"rms_norm"}),
        (("attention/*",), (), {"attention"}),
        (("*",), ("rms*",), {"attention"}),
        ((), ("*/torch", "*/cpu", "*/triton"), set()),
        (("nothing",), (), set()),
    ],
)
def test_include_and_exclude(tmp_path: Path, include: Any, exclude: Any, expected: set[str]) -> None:
    q = torch.randn(1, 4, 1, 8)
    call(tmp_path, attention, q, include=include, exclude=exclude)
    call(tmp_path, sgl_kernels.rms_norm, q, include=include, exclude=exclude)
    assert {json.loads((f / "call.json").read_text())["op"] for f in folders(tmp_path)} == expected


def test_an_exception_is_kept_in_the_dump(tmp_path: Path) -> None:
    from sgl_kernels.core.wrapping.trace import traced

    def fail(*args: Any) -> Any:
        raise RuntimeError("illegal memory access")

    settings = TraceSettings(level=10, dest=str(tmp_path / "log"), dump_dir=str(tmp_path / "dumps"))
    selection = Selection("rms_norm", (), Device("cpu"), "mine", "rank 7", ())
    with pytest.raises(RuntimeError, match="illegal"):
        traced(fail, registry.op("rms_norm"), selection, settings)(torch.ones(2), None, float("inf"), 0.0)
    (folder,) = folders(tmp_path)
    stored = load_dump(str(folder))
    assert stored.status == "raised" and stored.args[1:] == (None, float("inf"), 0.0)
    assert stored.record["exception"]["message"] == "illegal memory access"
    assert "in fail" in "".join(stored.record["exception"]["traceback"])


def test_calls_and_bytes_are_limited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    q = torch.randn(1, 4, 1, 8)  # 128 bytes
    for _ in range(5):
        call(tmp_path, sgl_kernels.rms_norm, q, max_dump_calls=2)
    assert len(folders(tmp_path)) == 2
    assert sum("trace.max_dump_calls is 2" in r.getMessage() for r in caplog.records) == 1
    assert "no dump: trace.max_dump_calls" in (tmp_path / "log").read_text()
    other = str(tmp_path / "dumps")
    dump.budget.spent.clear()
    for _ in range(5):
        call(tmp_path, sgl_kernels.rms_norm, q, max_dump_bytes=600, dump_dir=other)
    assert len(folders(tmp_path)) == 4, "each dump is 256 bytes, inputs and outputs"


@pytest.mark.parametrize("kind", ["full disk", "below a file", "unknown"])
def test_a_dump_that_fails_is_one_warning_and_leaves_nothing(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, trace = torch.ones(2, 4), {}

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device") if kind == "full disk" else RuntimeError("safetensors")

    if kind == "below a file":
        (tmp_path / "file").write_text("")
        trace["dump_dir"] = str(tmp_path / "file" / "dumps")
    else:
        monkeypatch.setattr("safetensors.torch.save_file", fail)
    for _ in range(3):
        assert call(tmp_path, sgl_kernels.rms_norm, x, **trace).shape == x.shape
    assert folders(tmp_path) == []
    assert len([r for r in caplog.records if "calls go on without it" in r.getMessage()]) == 1


def test_outputs_that_cannot_be_written_leave_the_inputs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    real = safetensors.torch.save_file

    def full(tensors: Any, path: str) -> None:
        if path.endswith("outputs.safetensors"):
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr("safetensors.torch.save_file", full)
    call(tmp_path, sgl_kernels.rms_norm, torch.ones(2, 4))
    stored = load_dump(str(folders(tmp_path)[0]))
    assert stored.status == "inputs saved" and "No space left" in caplog.text


def test_no_dump_during_a_graph_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl_kernels.core.wrapping.dump.is_capturing", lambda: True)
    call(tmp_path, sgl_kernels.rms_norm, torch.ones(2, 4))
    assert folders(tmp_path) == [] and "a CUDA graph is being captured" in (tmp_path / "log").read_text()


def test_threads_do_not_share_folders(tmp_path: Path) -> None:
    def work(_: int) -> None:
        call(tmp_path, sgl_kernels.rms_norm, torch.ones(2, 4))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))
    assert len(folders(tmp_path)) == 24
    assert {load_dump(str(f)).status for f in folders(tmp_path)} == {"completed"}


def test_compiled_code_dumps_real_tensors(tmp_path: Path) -> None:
    def function(q: torch.Tensor) -> torch.Tensor:
        return sgl_kernels.attention(q, q, q) * 2

    compiled = torch.compile(function, backend="eager", fullgraph=True)
    call(tmp_path, compiled, torch.randn(1, 4, 2, 8))
    text = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
    for folder in folders(tmp_path):  # the torch floor may be inlined, and then there is no call to log
        assert replay(str(folder)).comparisons[0].equal
    assert text.count("call attention") == len(folders(tmp_path))


BROKEN = {
    "empty": {},
    "no json": {"call.json": "{"},
    "other format": {"call.json": '{"format": 99}'},
    "no tensors": {"call.json": '{"format": 1}'},
    "bad tensors": {"call.json": '{"format": 1, "arguments": []}', "inputs.safetensors": "x"},
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_not_a_dump(kind: str, tmp_path: Path) -> None:
    for name, text in BROKEN[kind].items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_dump(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(ConfigError, match=r"call\.json is missing"):
        load_dump(str(tmp_path / "nowhere"))


def test_restore() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert restore(x, [3, 1]) is x
    assert restore(x, [1, 2]).stride() == (1, 2) and torch.equal(restore(x, [1, 2]), x)
    assert restore(x[:1].expand(4, 3).contiguous(), [0, 1]).stride() == (0, 1)
    assert torch.equal(restore(x, [1, 1]), x), "overlapping memory is laid out anew"
    assert restore(torch.zeros(0, 3), [9, 9]).shape == (0, 3)


def test_compare() -> None:
    a = torch.tensor([1.0, float("nan"), float("inf"), 2.0])
    assert compare("x", a, a.clone()).equal
    other = compare("x", a, torch.tensor([1.0, float("nan"), float("-inf"), 3.0]))
    assert (other.equal, other.max_abs, other.nonfinite_differ) == (False, 1.0, 1)
    assert "1 non-finite elements differ" in str(other)
    assert compare("x", torch.zeros(2), torch.zeros(3)).max_abs == float("inf")
    assert not compare("x", a, a.double()).equal
    assert compare("x", torch.zeros(0), torch.zeros(0)).equal
    assert compare("x", torch.ones(2), torch.zeros(2)).relative_l2 == float("inf")


def test_settings_of_a_dump_are_those_of_the_dispatcher() -> None:
    assert Settings().trace == TraceSettings()
    with sgl_kernels.use(trace=3) as dispatcher:
        assert dispatcher.settings.trace.level == 3
