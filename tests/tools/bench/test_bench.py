"""The benchmark measures in turns, judges answers, keeps what it is not asked about, and tells it as a page."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.pages import performance
from benchmarks.pages.__main__ import app as pages
from sgl_kernels.cli import app
from sgl_kernels.core.op import Case, Cost, TensorSpec
from sgl_kernels.core.registry import registry
from sgl_kernels.tools.bench import (
    ceilings,
)
from sgl_kernels.tools.bench import (
    clock as bench_clock,
)
from sgl_kernels.tools.bench import (
    dispatch as bench_dispatch,
)
from sgl_kernels.tools.bench import (
    measure as bench,
)
from sgl_kernels.tools.bench import (
    results as bench_results,
)
from sgl_kernels.tools.bench.oracle import Oracle
from sgl_kernels.tools.bench.plain_torch import spelling

CPU = torch.device("cpu")
CEILINGS = ceilings.Ceilings(1, {"float32": 100.0, "int8": 400.0}, {"float32": "made up"}, {1 << 20: 10.0})
QUICK = bench.Options(rounds=3, seconds=0.1)


def small(op: str) -> tuple[Case, torch.dtype]:
    cases = registry.op(op).cases()
    return next(c for c in cases if "smoke" in c.tags), torch.float32


def test_candidates_take_turns():
    order: list[str] = []
    calls = {name: [lambda name=name: order.append(name)] for name in ("a", "b", "c")}
    times = bench_clock.interleave(calls, device=CPU, rounds=4, budget_s=10)
    assert set(times) == {"a", "b", "c"} and all(len(t.samples) == 4 for t in times.values())
    collapsed = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert "".join(collapsed[-12:]).count("abc") + "".join(collapsed[-12:]).count("bca") >= 1


def test_a_ratio_is_the_median_of_the_ratios_within_turns():
    base = bench_clock.Timing((2.0, 4.0, 6.0))
    ours = bench_clock.Timing((1.0, 2.0, 1.0))
    assert ours.ratio_to(base)[0] == 2.0
    assert ours.median == 1.0 and base.spread == (3.0, 5.0)


def test_a_backend_that_writes_into_given_tensors_is_measured_so_too(require):
    case, dtype = small("rms_norm")
    row = bench.measure(registry.op("rms_norm"), case, dtype, device=CPU, ceilings=CEILINGS, options=QUICK)
    names = [c["name"] for c in row["candidates"]]
    if "cpu" not in names:
        require.skip("cpu", "the C++ extension is not built")
    into = row["candidates"][names.index(f"cpu{bench.INTO}")]
    assert into["error"]["relative_l2"] < 1e-6 and into["vs_torch"] > 0
    table = performance.detail([row])  # a call that is given its output is not compared with one that is not
    assert bench.INTO not in str(table.rows)


def test_inputs_are_rotated():
    seen: list[int] = []
    variants = [lambda i=i: seen.append(i) for i in range(3)]
    bench_clock.interleave({"x": variants}, device=CPU, rounds=3, budget_s=10)
    assert seen[-6:] in ([0, 1, 2, 0, 1, 2], [1, 2, 0, 1, 2, 0], [2, 0, 1, 2, 0, 1])


def test_a_long_first_call_is_warm_up_enough():
    calls: dict[str, int] = {"long": 0, "short": 0}

    def run(name):
        calls[name] += 1

    variants = {name: [lambda name=name: run(name)] for name in calls}
    took = {"long": 10.0, "short": 1e-9}
    times = bench_clock.interleave(variants, device=CPU, rounds=4, budget_s=10, took=took)
    assert calls["long"] == 4 == len(times["long"].samples) and calls["short"] > 4


@pytest.mark.parametrize("seconds, rounds", [(3.0, 2), (0.6, 3), (0.2, 6)])
def test_a_round_that_spends_the_budget_is_taken_twice(monkeypatch, seconds, rounds):
    now = [0.0]

    def run():
        now[0] += seconds

    monkeypatch.setattr(bench_clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    took, clock = {"x": 1.0}, lambda: now[0]
    times = bench_clock.interleave({"x": [run]}, device=CPU, rounds=9, budget_s=1.0, clock=clock, took=took)
    assert len(times["x"].samples) == rounds and times["x"].median == pytest.approx(seconds)


def test_cpu_time_is_for_one_thread():
    with pytest.raises(ValueError, match="--clock is 'cpu'"):
        bench_clock.clock_of("cpu", CPU, 2)


def test_threads_are_restored():
    before = torch.get_num_threads()
    with bench_clock.threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_roofline_takes_what_lasts_longer():
    assert bench.roofline(Cost(flops=10**9, bytes=1), torch.float32, CEILINGS) == (
        "flops",
        pytest.approx(0.01),
    )
    assert bench.roofline(Cost(flops=1, bytes=10**9), torch.float32, CEILINGS) == (
        "bytes",
        pytest.approx(0.1),
    )
    assert CEILINGS.arithmetic(torch.bfloat16) == 100.0
    both = ceilings.Ceilings(1, {"float32": 100.0}, {}, {1 << 20: 100.0, 1 << 27: 10.0})
    warm, cold = (bench.roofline(Cost(1, 1 << 20), torch.float32, both, n)[1] for n in (1, 128))
    assert cold == pytest.approx(10 * warm)


def test_a_lossy_candidate_may_compute_in_bytes_where_they_are_faster():
    work = Cost(flops=10**9, bytes=1)
    assert bench.lossy_roof(work, torch.float32, CEILINGS) == pytest.approx(0.0025)
    slow = ceilings.Ceilings(1, {"float32": 100.0, "int8": 0.3}, {}, {1 << 20: 10.0})
    assert bench.lossy_roof(work, torch.float32, slow) == pytest.approx(0.01)


def test_a_cold_case_rotates_more_than_the_caches_hold(tmp_path, monkeypatch):
    for index, size in enumerate(("32K", "512K", "32M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert bench_clock.beyond_caches_mib(tmp_path) == 128
    (tmp_path / "index2" / "size").write_text("1000M")
    assert bench_clock.beyond_caches_mib(tmp_path) == 1024
    assert bench_clock.beyond_caches_mib(tmp_path / "none") == 128
    monkeypatch.setattr(bench, "beyond_caches_mib", lambda: 1)
    op = registry.op("gelu_tanh")
    case = Case("cold", (TensorSpec((64, 512)),), frozenset({"bench", bench.COLD}))
    row = bench.measure(op, case, torch.float32, device=CPU, ceilings=CEILINGS, options=QUICK)
    assert row["copies"] == 4  # 128 KiB are read and as many written, and 1 MiB is to be covered
    assert any(bench.COLD in c.tags for c in registry.op("attention").cases())


def test_ceilings_are_measured():
    found = ceilings.measure_ceilings(CPU, 0.2)
    assert found.gflops["float32"] > 0.1 and found.bandwidth(8 << 20) > 0.01
    assert found.threads == torch.get_num_threads()


@pytest.mark.parametrize("name", sorted(registry.ops()))
def test_plain_spelling_means_the_same(name):
    op = registry.op(name)
    tried = 0
    for case in op.cases():
        if "test" not in case.tags or torch.float32 not in case.dtypes:
            continue
        args = op.canonical(*case.make(CPU, torch.float32))
        plain = spelling(name, args)
        if plain is None or not args[0].numel() or "rows_without_keys" in case.name or "no_keys" in case.name:
            continue
        try:
            out = plain(*args)
        except (RuntimeError, ValueError):
            continue  # people's spelling does not take every edge case; that is why the ops exist
        expected = op.reference(*args)
        first = (out[0], expected[0]) if isinstance(out, tuple) else (out, expected)
        torch.testing.assert_close(*first, rtol=1e-4, atol=1e-4, equal_nan=True, msg=f"{case.name} differs")
        tried += 1
    assert tried or name.startswith(("nvfp4", "attention_"))


def test_a_row_says_everything():
    op = registry.op("gelu_tanh")
    row = bench.measure(op, *small("gelu_tanh"), device=CPU, ceilings=CEILINGS, options=QUICK)
    names = [c["name"] for c in row["candidates"]]
    assert bench.FLOOR in names and bench.EAGER in names
    floor = next(c for c in row["candidates"] if c["name"] == bench.FLOOR)
    assert floor["vs_torch"] == 1.0 and floor["error"]["relative_l2"] < 1e-6
    assert floor["unit"] == "GB/s" and 0 < floor["percent"] < math.inf
    assert row["skipped"].get("triton", "platform").startswith("platform")


@pytest.mark.parametrize("name", ["causal_square", "gqa_mask", "mask_float", "window", "decode"])
def test_a_part_of_attention_is_judged_as_the_whole(name, monkeypatch):
    monkeypatch.setattr("sgl_kernels.tools.bench.oracle.ROWS", 7)
    op = registry.op("attention")
    case = next(c for c in op.cases() if c.name == name)
    args = op.canonical(*case.make(CPU, torch.float32))
    right = op.reference(*args)
    oracle = Oracle(op, args)
    assert oracle.judge(right).relative_l2 < 1e-5
    assert oracle.judge(right * 1.1).relative_l2 > 0.05


def test_a_part_of_an_activation_is_judged(monkeypatch):
    monkeypatch.setattr("sgl_kernels.tools.bench.oracle.MAX_ELEMENTS", 10)
    op = registry.op("silu_mul")
    args = op.canonical(TensorSpec((300, 8)).make(torch.float32, CPU, torch.Generator().manual_seed(0)))
    assert Oracle(op, args).expected.shape == (192, 4)
    assert Oracle(op, args).judge(op.reference(*args)).relative_l2 < 1e-6


def result(ratio: float = 2.0, case: str = "c") -> dict:
    candidate = {
        "name": "cpu", "fidelity": "exact", "median_ms": 1.0, "low_ms": 0.9, "high_ms": 1.1, "samples": 3,
        "rate": 10.0, "unit": "GB/s", "percent": 50.0, "vs_torch": ratio, "vs_torch_spread": [1.9, 2.1],
        "error": {"relative_l2": 1e-6, "max_abs": 1e-6, "cosine": 1.0, "finite_match": True},
    }  # fmt: skip
    floor = {
        **candidate,
        "name": bench.FLOOR,
        "median_ms": 2.0,
        "vs_torch": 1.0,
        "vs_torch_spread": [1.0, 1.0],
    }
    return {
        "op": "gelu_tanh", "family": "activation", "case": case, "note": "", "dtype": "bfloat16", "threads": 1,
        "tensors": [], "flops": 1, "bytes": 1, "bound": "bytes", "copies": 1, "clock": "wall",
        "candidates": [copy.deepcopy(candidate), floor], "skipped": {"bad": "FAILED: RuntimeError: no"},
    }  # fmt: skip


def test_result_files_keep_what_was_not_measured_again(tmp_path):
    path = tmp_path / "m" / "activation.json"
    first = bench_results.document([result(2.0, "a"), result(3.0, "b")], [CEILINGS], CPU, {})
    bench_results.save(path, first)
    bench_results.save(path, bench_results.document([result(9.0, "b")], [CEILINGS], CPU, {}))
    rows = bench_results.load(path)["results"]
    assert [(r["case"], r["candidates"][0]["vs_torch"]) for r in rows] == [("a", 2.0), ("b", 9.0)]
    assert bench_results.is_result(path) and not bench_results.is_result(tmp_path / "none.json")


def test_a_file_that_is_no_result_is_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"x\.json is not a result file"):
        bench_results.load(path)


def test_the_page_is_written_from_files_alone(tmp_path):
    folder = tmp_path / "results" / "m"
    bench_results.save(folder / "activation.json", bench_results.document([result()], [CEILINGS], CPU, {}))
    (tmp_path / "results" / "other.json").write_text('{"cases": []}')
    page = performance.render(tmp_path / "results")
    assert page == performance.render(tmp_path / "results")
    assert "2.00x" in page and "activation.json" in page
    assert "No result file" in performance.render(tmp_path / "nothing")


def test_scaling_compares_thread_counts_of_one_case():
    one, two, alone = result(), {**result(), "threads": 2}, {**result(case="alone"), "threads": 2}
    two["candidates"][0]["median_ms"] = 0.55
    table = performance.scaling([one, two, alone])
    assert table.rows == [("gelu_tanh", "cpu", "bfloat16", 2, 1, "1.82x", "1.82x (c)", "1.82x (c)")]
    assert performance.scaling([one]).rows == []


def test_failures_stand_in_the_table():
    text = str(bench_results.table([result()]).rows)
    assert "FAILED" in text and "2.00x" in text


def test_machine_names_make_folders():
    machine = {"cpu": "Intel(R) Xeon(R) CPU @ 2.20GHz", "platform": "cpu", "arch": "avx512", "device": ""}
    assert bench_results.machine_slug(machine) == "intel-xeon-avx512"
    gpu = {"cpu": "x", "platform": "cuda", "arch": "sm90", "device": "NVIDIA H200 (cuda:sm90)"}
    assert bench_results.machine_slug(gpu) == "nvidia-h200"


def test_dispatch_is_measured_with_and_without_a_kernel():
    data = bench_dispatch.measure(rounds=2)
    assert set(data["modes"]) == {"grad mode", "no_grad", "inference_mode"}
    for mode in data["modes"].values():
        assert mode["overhead"]["ours"] > 0
    assert "ours" in str(bench_dispatch.table(data).rows)


def test_bench_runs_from_the_command_line(tmp_path):
    arguments = ["bench", "gelu_tanh", "--tag", "smoke", "--dtype", "fp32", "--quick", "--rounds", "3"]
    result = CliRunner().invoke(
        app, [*arguments, "--seconds", "0.2", "--out", str(tmp_path)], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output + result.stderr
    assert "GB/s" in result.stdout and "torch eager" in result.stdout
    (written,) = tmp_path.rglob("activation.json")
    assert bench_results.load(written)["results"][0]["op"] == "gelu_tanh"


def test_plots_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    bench_results.save(tmp_path / "m.json", bench_results.document([result()], [CEILINGS], CPU, {}))
    done = CliRunner().invoke(pages, ["plots", "--results", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")


def test_goals_are_compared_with_what_was_measured():
    from benchmarks.pages.goals import compare

    met = {**result(12.0, "4096x12288"), "op": "gelu_tanh"}
    missed = {**result(2.0, "dit1k.s1024h24d64"), "op": "attention"}
    rows = compare([met, missed], "avx512").rows
    verdicts = {str(row[0]): str(row[-1]) for row in rows}
    assert verdicts["gelu_tanh 4096x12288"] == "yes"
    assert verdicts["attention, head_dim 64 and more"] == "no: needs avx512bf16"
    assert [str(row[-1]) for row in compare([missed], "avx512bf16").rows] == [
        "no: above this machine's ceiling (4.00x)"  # 2x at half of the ceiling
    ]
    missed["candidates"][0]["percent"] = 40.0
    assert [str(row[-1]) for row in compare([missed], "avx512bf16").rows] == ["no"]
    fast = copy.deepcopy(missed)
    fast["candidates"][0] |= {"vs_torch": 4.0, "percent": 80.0}
    fast["case"] = "flux.s4096h24d128"
    missed["candidates"][0]["percent"] = 60.0
    (row,) = compare([missed, {**fast, "dtype": "float16"}, {**missed, "dtype": "float16"}], "avx512").rows[
        1:
    ]
    assert str(row[-1]) == "no" and row[-2] == "4.08x"
    missed["candidates"][0]["percent"] = 80.0
    fast["candidates"][0] |= {"vs_torch": 5.0, "percent": 70.0}
    (row,) = compare([{**fast, "dtype": "float16"}, {**missed, "dtype": "float16"}], "avx512").rows
    assert str(row[-1]) == "no: the least is above this machine's ceiling (2.50x)"
    missed["candidates"][0]["percent"] = 300.0  # what was beaten threefold is no ceiling
    assert [str(row[-1]) for row in compare([missed], "avx512bf16").rows] == ["no"]
    near = {**result(2.5, "4096x12288"), "op": "silu_mul"}
    near["candidates"][0]["percent"] = 93.0
    assert str(compare([near], "avx512").rows[0][-1]) == "no: at the machine's bandwidth"


def test_an_interrupted_run_keeps_what_it_measured(tmp_path, monkeypatch):
    rows = iter([result()])

    def measure(*arguments, **more):
        try:
            return next(rows)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(bench, "measure", measure)
    out = tmp_path / "r.json"
    done = CliRunner().invoke(app, ["bench", "gelu_tanh", "--tag", "smoke", "--quick", "--out", str(out)])
    assert "interrupted" in done.stderr and len(bench_results.load(out)["results"]) == 1


def test_the_extension_times_single_instructions(require):
    from sgl_kernels.kernels.cpu import loader

    if loader.load() is not None or not hasattr(torch.ops.sgl_kernels_cpu, "peak_gflops"):
        require.skip("cpu", "the C++ extension is not built")
    assert torch.ops.sgl_kernels_cpu.peak_gflops(99) == 0.0
    rates = ceilings._from_extension()
    assert all(rate > 1.0 for rate in rates.values()) and set(rates) <= set(ceilings.INSTRUCTIONS)
