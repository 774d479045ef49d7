"""The module that other distributions' backends import: complete, and all that the documentation's backend needs."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from sgl_kernels import backend
from sgl_kernels.core.registry import registry
from sgl_kernels.testing import check_backend

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTED = (ROOT / "docs" / "adding-a-backend.md").read_text()
EXAMPLE = (ROOT / "examples" / "third_party_backend" / "acme_sgl" / "__init__.py").read_text()


def _documented() -> str:
    return re.search(r"```python\n(.*?)```", DOCUMENTED, re.S).group(1)


@pytest.mark.parametrize("source", [_documented(), EXAMPLE], ids=["documentation", "example"])
def test_a_backend_imports_no_other_module_of_ours(source):
    imports = [n.module for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom)]
    assert {m for m in imports if m.startswith("sgl_kernels")} == {"sgl_kernels.backend"}


def test_the_documented_backend_is_one():
    names: dict = {}
    exec(compile(_documented(), "docs/adding-a-backend.md", "exec"), names)
    (acme,) = names["IMPLEMENTATIONS"]
    assert isinstance(acme, backend.Implementation) and acme.backend == "acme"
    op = registry.op("attention")
    q = torch.empty(1, 8, 2, 64, dtype=torch.bfloat16, device="meta")
    assert acme.rejects(op.facts(*op.canonical(q, q, q))) is None
    assert acme.rejects(op.facts(*op.canonical(q, q, q, None, False, "top_left", None, 3, 3))) is not None


def test_the_facts_of_every_op_are_named():
    """Whoever writes `rejects` for an op can say what it takes."""
    named = {v for k, v in vars(backend).items() if k.endswith("Facts")}
    asked = {op: _facts_of(op) for op in registry.ops()}
    assert {op for op, kind in asked.items() if kind not in named} == set()


def _facts_of(name: str) -> type:
    op = registry.op(name)
    case = min((c for c in op.cases() if "smoke" in c.tags), key=lambda c: c.name)
    return type(op.facts(*op.canonical(*case.make(torch.device("cpu"), torch.float32))))


@pytest.mark.parametrize("module", ["implementation", "requires", "verdict", "bugs"])
def test_old_paths_give_the_same_objects_and_say_where_to_go(module):
    name = f"sgl_kernels.core.{module}"
    sys.modules.pop(name, None)
    with pytest.warns(DeprecationWarning, match=f"{name} .* sgl_kernels.backend"):
        old = importlib.import_module(name)
    shared = [n for n in vars(old) if n[0].isupper() and n in vars(backend)]
    assert shared and all(getattr(old, n) is getattr(backend, n) for n in shared)


def test_the_conformance_kit_is_ours():
    assert check_backend.__module__.startswith("sgl_kernels.testing")
