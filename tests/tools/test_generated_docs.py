"""Pages and tables that the program writes: stale ones are noticed, markers that are wrong are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sgl_kernels.cli import app
from sgl_kernels.core.registry import registry
from sgl_kernels.core.sources import BY_NAME
from sgl_kernels.tools import report_docs, support_matrix

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


def test_marked_tables_are_written_and_the_rest_is_left():
    text = "before\n<!-- begin:env -->\nold\n<!-- end:env -->\nafter\n"
    new = report_docs.refreshed(text)
    assert new.startswith("before\n") and new.endswith("<!-- end:env -->\nafter\n") and "\nold\n" not in new
    assert all(f"`{name}`" in new for name in BY_NAME)
    assert report_docs.refreshed(new) == new


@pytest.mark.parametrize("name", sorted(report_docs.MAKERS))
def test_every_table_has_rows(name):
    assert len(report_docs.MAKERS[name]().splitlines()) > 3


def test_wrong_markers_are_named():
    with pytest.raises(
        ValueError, match="page: the marker 'begin:backend' is not known, expected one of backends"
    ):
        report_docs.refreshed("<!-- begin:backend -->\n<!-- end:backend -->", "page")
    with pytest.raises(ValueError, match="'begin:env' has no '<!-- end:env -->'"):
        report_docs.refreshed("<!-- begin:env -->\n")


def test_docs_check_notices_what_is_stale(tmp_path):
    (tmp_path / "docs").mkdir()
    readme = tmp_path / "README.md"
    readme.write_text("<!-- begin:ops -->\nold\n<!-- end:ops -->\n")
    run = CliRunner().invoke
    assert run(app, ["docs", "--root", str(tmp_path), "--check"]).exit_code == 1
    assert run(app, ["docs", "--root", str(tmp_path)]).exit_code == 0
    assert "`attention`" in readme.read_text() and (tmp_path / "docs" / "performance.md").is_file()
    assert run(app, ["docs", "--root", str(tmp_path), "--check"]).exit_code == 0


def test_support_matrix_says_how_each_cell_is_proven(tmp_path):
    ran = support_matrix.Evidence("attention", "torch_sdpa", "a device", "2.13.0", "2026-01-01")
    gone = support_matrix.Evidence("attention", "no_such_backend", "a device", "2.13.0", "2026-01-01")
    page = support_matrix.render(registry, [ran, gone])
    row = next(line for line in page.splitlines() if line.startswith("| `torch_sdpa`"))
    assert "ran" in row and "a device" in page and "no_such_backend" not in page
    words = {support_matrix.cell(i, False) for op in registry.ops() for i in registry.implementations(op)}
    assert words <= {"declared", *support_matrix.PROOFS} | {w for w in words if "," in w}


def test_evidence_survives_a_round_trip(tmp_path):
    path = tmp_path / "e.json"
    rows = [support_matrix.Evidence("rms_norm", "b", "d", "2.13", "2026-01-01")]
    support_matrix.save_evidence(path, rows)
    assert support_matrix.load_evidence(path) == rows
    assert support_matrix.load_evidence(tmp_path / "none.json") == []


def test_stale_support_matrix_is_noticed(tmp_path):
    page = tmp_path / "support.md"
    evidence = tmp_path / "support.json"
    assert "does not exist" in support_matrix.stale(page, evidence, registry, CPU)[0]
    support_matrix.save_evidence(evidence, [])
    page.write_text("old")
    problems = support_matrix.stale(page, evidence, registry, CPU)
    assert any("is not what the registry" in p for p in problems)
    assert any("rms_norm on torch_sdpa can run here" in p for p in problems)
