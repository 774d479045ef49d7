"""Ops as torch ops: gradients through torch.ops, and nothing that one release of torch may take away."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sgl_kernels

PACKAGE = Path(sgl_kernels.__file__).parent


def modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_no_private_module_of_torch_is_imported():
    private = {p: [m for m in modules(p) if m.startswith("torch._")] for p in PACKAGE.rglob("*.py")}
    assert not {p: m for p, m in private.items() if m}


def test_the_package_is_whole_without_the_private_modules():
    """As on a torch that moved them: torch itself finds them, and we do not."""
    code = """if 1:
        import builtins, torch
        real = builtins.__import__

        def ours(name, variables=None, *rest):
            if name.startswith("torch._") and ((variables or {}).get("__name__") or "").startswith("sgl_kernels"):
                raise ImportError(name)
            return real(name, variables, *rest)

        builtins.__import__ = ours
        import sgl_kernels
        x = torch.randn(4, 64, requires_grad=True)
        torch.ops.sgl_kernels.rms_norm(x).sum().backward()
        want, = torch.autograd.grad(torch.nn.functional.rms_norm(x, (64,), None, 1e-6).sum(), x)
        torch.testing.assert_close(x.grad, want)
    """
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True), (False, False)])
def test_gradients_of_those_who_want_one(wanted):
    """By the op itself, with a backend as keyword, with arguments left out, and None for those who want none."""
    x, w = torch.randn(6, 64, dtype=torch.float64), torch.randn(64, dtype=torch.float64)
    x.requires_grad_(wanted[0]), w.requires_grad_(wanted[1])
    out = torch.ops.sgl_kernels.rms_norm(x, w, backend="torch")
    assert out.requires_grad == any(wanted)
    want = torch.nn.functional.rms_norm(x, (64,), w, 1e-6)
    torch.testing.assert_close(out, want)
    if not any(wanted):
        return
    inputs = [t for t, asked in zip((x, w), wanted, strict=True) if asked]
    g = torch.randn_like(out)
    for got, right in zip(
        torch.autograd.grad(out, inputs, g), torch.autograd.grad(want, inputs, g), strict=True
    ):
        torch.testing.assert_close(got, right)
    with torch.no_grad():
        assert not torch.ops.sgl_kernels.rms_norm(x, w).requires_grad


def test_gradients_of_one_of_two_results():
    q, k, v = (torch.randn(1, 5, 2, 8, requires_grad=True) for _ in range(3))
    out, lse = torch.ops.sgl_kernels.attention_lse(q, k, v)
    got = torch.autograd.grad(lse.sum(), (q, k), allow_unused=True)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * 8**-0.5
    want = torch.autograd.grad(scores.logsumexp(-1).sum(), (q, k))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)
    assert out.grad_fn is not None
