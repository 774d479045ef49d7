"""The NVFP4 part of the performance page: goals judged by the ratio they speak of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.pages import nvfp4, performance

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"
FILES = sorted(RESULTS.glob(f"*/{nvfp4.FILE}"))


def document(vs_bf16, vs_fp32):
    found = {"us": 500.0, "gops": 30.0, "vs_bf16": vs_bf16, "vs_fp32": vs_fp32}
    names = ("W4A16", "W4A8", "W4A4", "W4A16, x fp32")
    return {
        "machine": {"cpu": "Some CPU", "device": "x86_64 (cpu:avx2)", "arch": "avx2", "cores": 2},
        "versions": {"torch": "2.13.0", "sgl_kernels": "0.1.0"}, "date": "2026-01-01", "clock": "process CPU time",
        "linear": [{"m": 1, "n": 3072, "k": 3072, "candidates": dict.fromkeys(names, found)}],
        "quantise_gb_per_s": [{"dtype": "bfloat16", "m": 256, "k": 3072, "given": 13.0, "found": 9.0}],
    }  # fmt: skip


@pytest.mark.parametrize("ratio, met", [(6.9, "no"), (7.0, "yes")])
def test_goals_are_judged_by_their_own_ratio(ratio, met):
    rows = {row[0]: row for row in nvfp4.goals_table(document(ratio, 0.9)).rows}
    assert str(rows["W4A8, M=1, against bf16"][-1].text) == met
    assert str(rows["W4A16, x fp32, M=1, against fp32"][-1].text) == "no"
    assert str(rows["quantise bf16"][-1].text) == "yes"


def test_a_machine_with_nothing_else_gets_its_section(tmp_path):
    (tmp_path / "some-cpu").mkdir()
    (tmp_path / "some-cpu" / nvfp4.FILE).write_text(json.dumps(document(8.0, 2.0)))
    page = performance.render(tmp_path)
    assert "## Some CPU" in page and "### NVFP4" in page
    assert "0.50 (8.00 / 2.00)" in page


@pytest.mark.parametrize("path", FILES, ids=[p.parent.name for p in FILES])
def test_committed_results_have_every_row_the_goals_speak_of(path):
    found = nvfp4.load(path.parent)
    assert found["machine"]["platform"] == "cpu"
    assert len(nvfp4.goals_table(found).rows) == len(nvfp4.GOALS) + 1
