"""The plan for an accelerator, run on the CPU: every step ends with a status and a file, whatever becomes of it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest

from benchmarks.gpu import plan, task
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.steps import docs, graphs, install, opcheck, parity, present, sanitizer, speed
from benchmarks.pages import gpu, performance
from sgl_kernels.core.op import Op

ABOUT = {"machine": {"platform": "cpu", "device": "a processor"}, "versions": {"torch": "2"}}


def task_of(tmp_path, name, *more):
    parser = argparse.ArgumentParser()
    task.add_options(parser)
    arguments = [
        "--device=cpu",
        f"--root={tmp_path}",
        "--tag=smoke",
        "--ops=silu_mul",
        "--seconds=0.05",
        *more,
    ]
    return task.Task(name, tmp_path / "step.data", parser.parse_args(arguments))


def ended(tmp_path):
    return json.loads((tmp_path / "step.data").read_text())


def test_the_command_runs_steps_in_processes_and_says_what_cannot_be(tmp_path, capfd):
    arguments = ["--device=cpu", f"--root={tmp_path}", "--steps=opcheck,graphs,sanitizer", "--ops=silu_mul"]
    assert main(arguments) == 0
    (folder,) = (tmp_path / "benchmarks" / "results").iterdir()
    found = {s["step"]: s for s in gpu.steps(folder)}
    assert found["opcheck"]["status"] == "ran" and found["opcheck"]["data"]["silu_mul"] == "right"
    assert found["graphs"]["status"] == "not possible" and "needs cuda" in found["graphs"]["reason"]
    assert found["sanitizer"]["status"] == "not possible"
    assert all(
        s["date"] and s["versions"]["torch"] and s["machine"]["platform"] == "cpu" for s in found.values()
    )
    capfd.readouterr()
    assert main([*arguments, "--resume"]) == 0
    assert capfd.readouterr().out.count("ran before") == 3
    page = performance.render(tmp_path / "benchmarks" / "results")
    assert "| graphs | not possible | needs cuda or rocm, the device is cpu |" in page


def test_a_device_that_is_not_here_is_one_line(tmp_path, capfd):
    assert main(["--device=xpu", f"--root={tmp_path}"]) == 2
    assert "cannot be used" in capfd.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "code, words",
    [
        ("import os; os.abort()", "exit status -6"),
        ("import time; print('so far'); time.sleep(60)", "stopped after 1 s"),
        ("raise ValueError('the kernel is wrong')", "the kernel is wrong"),
    ],
)
def test_a_step_that_dies_or_hangs_leaves_its_reason(tmp_path, monkeypatch, code, words):
    real = plan._wait
    monkeypatch.setattr(plan, "_wait", lambda command, limit: real([sys.executable, "-c", code], 1.0))
    result = plan.run_step(plan.BY_NAME["opcheck"], ABOUT, tmp_path, [], 1.0)
    assert result["status"] == "failed" and words in result["reason"]
    assert plan.read(plan.result_file(tmp_path, plan.BY_NAME["opcheck"])) == result


def test_what_a_dead_step_had_put_down_is_kept(tmp_path, monkeypatch):
    code = "import json, sys, os; json.dump({'status': 'failed', 'data': {'a': 1}}, open(sys.argv[1], 'w')); os.abort()"
    real = plan._wait
    monkeypatch.setattr(
        plan, "_wait", lambda command, limit: real([sys.executable, "-c", code, command[5]], limit)
    )
    result = plan.run_step(plan.BY_NAME["opcheck"], ABOUT, tmp_path, [], 20.0)
    assert result["data"] == {"a": 1} and "exit status -6" in result["reason"]
    assert [p.name for p in tmp_path.iterdir()] == ["gpu_opcheck.json"]


def test_steps_are_chosen_by_name():
    assert [s.name for s in plan.chosen("bench,parity")] == ["parity", "bench"]
    assert plan.chosen(None) == plan.STEPS
    with pytest.raises(ValueError, match="--steps names 'benhc', expected some of install, parity"):
        plan.chosen("benhc")


def test_parity_requires_what_is_present(tmp_path):
    parity.run(task_of(tmp_path, "parity"))
    found = ended(tmp_path)
    assert found["status"] == "ran" and "torch" in found["data"]["required"]
    assert found["data"]["cells"]["pass"] > 0 and not found["data"]["cells"]["fail"]
    assert parity.required("x", {"pass": 0}) == ["x is present, and no cell of it ran"]
    assert parity.required("x", {"pass": 3, "skips": {"feature: no masks": 4}}) == []
    assert parity.required("x", {"pass": 0, "skips": {"bug: noise on this device": 9}}) == []
    assert parity.required("x", {"pass": 0, "skips": {"bug: noise on this device": 9, "shape: odd": 1}}) == []
    assert parity.required("x", {"pass": 0, "skips": {"shape: odd": 1}})
    for part in (
        {"pass": 1, "skips": {"load: ImportError": 2}}, {"pass": 1, "failures": ["a"]}, {"pass": 1, "crashed": "c"}
    ):  # fmt: skip
        assert len(parity.required("x", part)) == 1


def test_backends_can_have_a_process_each(tmp_path):
    isolated = task_of(tmp_path, "parity", "--isolate")
    isolated.each_backend(["torch"], lambda backend: pytest.fail("it ran in this process"))
    assert isolated.data["torch"]["pass"] > 0
    isolated.each_backend(["no_such_backend"], lambda backend: None)
    assert not isolated.data["no_such_backend"].get("pass")


def test_opcheck_finds_an_op_whose_fake_lies(tmp_path, monkeypatch):
    def wrong(op, args, test_utils):
        raise RuntimeError("silu_mul: the fake and the real result differ")

    monkeypatch.setattr("torch.library.opcheck", wrong)
    opcheck.run(task_of(tmp_path, "opcheck"))
    assert ended(tmp_path)["status"] == "failed" and "differ" in ended(tmp_path)["reason"]


def test_the_benchmark_says_what_auto_takes(tmp_path):
    speed.run(task_of(tmp_path, "bench"))
    found = ended(tmp_path)
    assert found["status"] == "ran" and found["data"]["auto"], found
    row = found["data"]["auto"][0]
    assert row["op"] == "silu_mul" and row["auto"] and row["best"] and row["ratio"] >= 1.0
    again = task_of(tmp_path, "bench", "--resume")
    (tmp_path / "step.data").unlink()
    speed.run(again)
    assert not ended(tmp_path)["data"]["auto"], (
        "everything was measured today, and its auto rows are in the step's file"
    )


def test_auto_is_held_against_the_best_exact_backend():
    row = {
        "candidates": [
            {"name": "fa3", "fidelity": "exact", "median_ms": 1.0},
            {"name": "sage_attn", "fidelity": "lossy", "median_ms": 0.5},
            {"name": "torch", "fidelity": "exact", "median_ms": 2.0},
        ]
    }
    near, off = (gpu.auto_against_best(row, name) for name in ("fa3", "torch"))
    assert (near["ratio"], off["ratio"], off["best"]) == (1.0, 2.0, "fa3")
    assert gpu.auto_against_best(row, "absent")["ratio"] is None
    rows = [{"op": "attention", "case": "a", "dtype": "bfloat16", **r} for r in (near, off)]
    table = gpu.auto_table(rows)
    assert "1 of 2 cases" in table.note and len(table.rows) == 1


def test_pages_are_written_by_the_plan(tmp_path, monkeypatch):
    ran = []

    def fake(command, **kw):
        ran.append(command[2:])
        return subprocess.CompletedProcess(command, 0, "written", "")

    monkeypatch.setattr(docs.subprocess, "run", fake)
    docs.run(task_of(tmp_path, "docs"))
    assert ended(tmp_path)["status"] == "ran"
    assert [c[1] for c in ran] == ["docs", "support-matrix"] and f"{tmp_path}/docs/support-matrix.md" in ran[
        1
    ]


@pytest.mark.parametrize("code, status", [(0, "installed"), (1, "absent")])
def test_a_wheel_that_cannot_be_had_is_a_reason(monkeypatch, code, status):
    commands = []

    def pip(command, **kw):
        commands.append(command)
        error = "ERROR: No matching distribution found for sageattention" if "pip" in command else ""
        return subprocess.CompletedProcess(command, code if "pip" in command else 0, "", error)

    monkeypatch.setattr(install, "missing", lambda requirement: "not installed")
    monkeypatch.setattr(install.subprocess, "run", pip)
    found = install.one(install.Vendor("sageattention>=1.0.6", "sageattention"), "sm90", "wheels")
    assert found["status"] == status and ("reason" in found) == (status == "absent")
    assert "--no-index" in commands[0] and "-c" in commands[0], "torch must stay as it is"


def test_a_vendor_without_kernels_for_the_device_is_not_tried():
    assert install.one(install.CUDA[1], "sm100", "")["status"] == "not possible"


def test_present_backends_load(tmp_path):
    here, absent = present.present(task_of(tmp_path, "parity"))
    assert "torch" in here and all(isinstance(why, str) and why for why in absent.values())
    assert "ascend" not in absent, "another platform's backends are not even mentioned"


def test_graph_and_sanitizer_steps_know_their_own_answers(tmp_path, monkeypatch):
    import torch

    a, b = torch.ones(3), torch.full((3,), 2.0)
    assert graphs._compare(a, a) == "right" and graphs._compare((a, a), (a, b)) != "right"
    assert "right" in graphs._fine("attention_varlen", "torch") and len(graphs._fine("attention", "fa3")) == 2
    monkeypatch.setattr(sanitizer.shutil, "which", lambda name: None)
    sanitizer.run(task_of(tmp_path, "sanitizer"))
    assert ended(tmp_path)["status"] == "not possible"


def test_a_first_call_inside_a_capture_says_warm_up_first(monkeypatch):
    import torch

    from sgl_kernels.core.dispatch import Dispatcher
    from sgl_kernels.core.registry import registry
    from sgl_kernels.core.settings import Settings

    class OnCuda:
        __class__ = torch.Tensor
        device = torch.device("cuda")

    monkeypatch.setattr("sgl_kernels.core.dispatch.is_capturing", lambda: True)
    op: Op = registry.op("silu_mul")
    with pytest.raises(RuntimeError, match="warm up first"):
        Dispatcher(Settings()).bind(op, None, None, (OnCuda(), None))
