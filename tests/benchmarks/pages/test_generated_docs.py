"""Pages and tables that the program writes: stale ones are noticed, markers that are wrong are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.pages import support_matrix, tables
from benchmarks.pages.__main__ import app
from sgl_kernels.core.registry import Registry, registry
from sgl_kernels.core.settings.variables import BY_NAME

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]


def test_marked_tables_are_written_and_the_rest_is_left():
    text = "before\n<!-- begin:env -->\nold\n<!-- end:env -->\nafter\n"
    new = tables.refreshed(text)
    assert new.startswith("before\n") and new.endswith("<!-- end:env -->\nafter\n") and "\nold\n" not in new
    assert all(f"`{name}`" in new for name in BY_NAME)
    assert tables.refreshed(new) == new


@pytest.mark.parametrize("name", sorted(tables.MAKERS))
def test_every_table_has_rows(name):
    assert len(tables.MAKERS[name]().splitlines()) > 3


def test_wrong_markers_are_named():
    with pytest.raises(
        ValueError, match="page: the marker 'begin:backend' is not known, expected one of backends"
    ):
        tables.refreshed("<!-- begin:backend -->\n<!-- end:backend -->", "page")
    with pytest.raises(ValueError, match="'begin:env' has no '<!-- end:env -->'"):
        tables.refreshed("<!-- begin:env -->\n")


def test_docs_check_notices_what_is_stale(tmp_path):
    (tmp_path / "docs").mkdir()
    readme = tmp_path / "README.md"
    readme.write_text("<!-- begin:ops -->\nold\n<!-- end:ops -->\n")
    run = CliRunner().invoke
    assert run(app, ["docs", "--root", str(tmp_path), "--check"]).exit_code == 1
    assert run(app, ["docs", "--root", str(tmp_path)]).exit_code == 0
    assert "`attention`" in readme.read_text() and (tmp_path / "docs" / "performance.md").is_file()
    assert run(app, ["docs", "--root", str(tmp_path), "--check"]).exit_code == 0


@pytest.mark.parametrize(
    "line, words",
    [
        ("support-matrix --out no/such/folder/page.md", ["--out", "no/such/folder", "create it"]),
        ("docs --root /nonexistent", ["--root", "/nonexistent", "run this in the checkout"]),
        ("plots --results /nonexistent", ["--results", "/nonexistent", "bench --out"]),
    ],
)
def test_a_place_that_is_not_there_is_named_with_its_option(line, words):
    done = CliRunner(env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"}).invoke(app, line.split())
    assert done.exit_code == 2 and all(word in done.stderr for word in words), done.stderr


def test_support_matrix_says_how_each_cell_is_proven(tmp_path):
    ran = support_matrix.Evidence("attention", "torch", "a device", "2.13.0", "2026-01-01")
    gone = support_matrix.Evidence("attention", "no_such_backend", "a device", "2.13.0", "2026-01-01")
    page = support_matrix.render(registry, [ran, gone])
    row = next(line for line in page.splitlines() if line.startswith("| `torch`"))
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
    assert any("rms_norm on torch can run here" in p for p in problems)


def test_the_proof_behind_a_cell_is_a_test_that_ran(tmp_path):
    """Lines of tests are added up, replace older ones of the same cell, and survive the file."""
    test = '"test": "tests/a.py::test_b", "torch": "2.13.0"'
    line = '{"op": "attention", "backend": "fa2", "proof": "contract", "cases": %d, ' + test + "}"
    known = [
        support_matrix.Evidence(
            "attention", "fa2", "", "2.9", "2025-01-01", "contract", "tests/old.py::test_gone", 3
        ),
        support_matrix.Evidence("attention", "fa2", "a device", "2.13.0", "2026-01-01"),
    ]
    found = support_matrix.merged(known, iter([line % 30, line % 2]), "2026-02-02")
    assert {(e.where, e.cases, e.date) for e in found if e.proof == "contract"} == {
        ("tests/a.py::test_b", 32, "2026-02-02")
    }
    assert any(e.device == "a device" for e in found), "what ran stays"
    path = tmp_path / "e.json"
    support_matrix.save_evidence(path, found)
    assert sorted(support_matrix.load_evidence(path), key=str) == sorted(found, key=str)
    page = support_matrix.render(registry, found)
    assert "| `fa2` | contract | `attention` 32 | `tests/a.py::test_b` | 2026-02-02 |" in page
    assert ("attention", "fa2", "contract") not in support_matrix.unproven(registry, found)
    assert ("attention", "fa3", "contract") in support_matrix.unproven(registry, found)


def test_several_machines_stand_side_by_side(tmp_path):
    rows = [
        support_matrix.Evidence("rms_norm", "cpu", name, "2.13.0", "2026-01-01") for name in ("one", "two")
    ]
    kept, _ = support_matrix.gather(Registry(), CPU, rows)
    assert not kept, "an empty registry knows neither"
    page = support_matrix.render(registry, rows)
    assert "| one | 2.13.0 | 2026-01-01 | `cpu` |" in page and "| two | 2.13.0 | 2026-01-01 | `cpu` |" in page


def test_every_cell_of_the_committed_matrix_has_its_proof():
    """The tests it names exist; a cell whose word nothing stands behind is a claim."""
    evidence = support_matrix.load_evidence(ROOT / "docs" / "support-matrix.json")
    assert not support_matrix.unproven(registry, evidence)
    for e in evidence:
        if e.proof in ("contract", "simulated", "interpreted"):
            path, _, function = e.where.partition("::")
            assert f"def {function.rpartition('::')[2]}(" in (ROOT / path).read_text(), e
            assert e.cases > 0
        if e.proof == "compiled":
            assert (ROOT / e.where.partition(":")[0]).is_dir()


def test_compiled_cells_come_from_the_budgets():
    found = support_matrix.compiled(ROOT / "benchmarks" / "results" / "triton_aot", registry)
    by_op = {(e.op, e.backend): e.cases for e in found}
    assert (
        by_op["attention", "triton"] > by_op["attention", "triton_int8"] > 0
        and by_op["attention_varlen", "triton"] > 0
    )
    assert all(
        "compiled" in i.proof
        for op in registry.ops()
        for i in registry.implementations(op)
        if (op, i.backend) in by_op
    )
