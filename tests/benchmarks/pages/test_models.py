"""The section on whole models is written from its result file alone."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.pages import performance

ROW = {
    "model": "bert", "what": "BERT: two layers.", "dtype": "bfloat16", "padding": "skip",
    "applied": "2 attention layers",
    "stock_ms": 1234.4, "ours_ms": 100.2, "ratio": 12.32, "ratio_min": 12.1, "ratio_max": 12.5,
    "stock_error": 0.0123, "ours_error": 0.0099, "restored": True,
}  # fmt: skip


def test_models_are_a_table_of_their_machine(tmp_path: Path) -> None:
    folder = tmp_path / "some-cpu"
    folder.mkdir()
    document = {
        "date": "2026-01-02",
        "machine": {"cpu": "Some CPU", "device": "cpu:avx2", "cores": 2, "arch": "avx2", "platform": "cpu"},
        "versions": {"torch": "2.13.0", "sgl_kernels": "0"},
        "settings": {"load_average": 1.5},
        "rows": [ROW],
    }
    (folder / "models.json").write_text(json.dumps(document))
    page = performance.render(tmp_path)
    assert "## Some CPU, cpu:avx2" in page and "### Whole models" in page
    assert "Measured 2026-01-02 with `make bench-models`, load average at the start 1.5." in page
    assert (
        "| BERT: two layers | bfloat16 | skip | 1,234 | 100 | 12.32x | 12.10 to 12.50 | 1.2e-02 | 9.9e-03 |"
        in page
    )
