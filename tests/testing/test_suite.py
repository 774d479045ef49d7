"""check_backend finds what is wrong, and the example package joins through its entry point."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sgl_kernels.core.registry import registry
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.testing import check_backend

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "third_party_backend"


def _rms(run) -> Implementation:
    return Implementation(op="rms_norm", backend="acme", load=lambda config: run)


def _right(x, weight, eps, weight_offset):
    y = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * (weight.float() + weight_offset)).to(x.dtype)


def test_a_right_backend_passes_and_leaves_no_trace():
    cells = check_backend([_rms(_right)])
    assert {c.status for c in cells} == {"pass"}
    assert "acme" not in registry.backends()


def _ignores_offset(x, weight, eps, weight_offset):
    return _right(x, weight, eps, 0.0)


def _in_place(x, weight, eps, weight_offset):
    return x.copy_(_right(x, weight, eps, weight_offset))


def _wrong_dtype(x, weight, eps, weight_offset):
    return _right(x.float(), weight, eps, weight_offset)


def _raises(x, weight, eps, weight_offset):
    raise RuntimeError("no kernel image")


def _unwritten(x, weight, eps, weight_offset):
    out = torch.full_like(x, float("nan"))
    out[..., : max(1, x.shape[-1] - 1)] = _right(x, weight, eps, weight_offset)[
        ..., : max(1, x.shape[-1] - 1)
    ]
    return out


@pytest.mark.parametrize(
    "run, message",
    [
        (_ignores_offset, "case weight_offset, float32: relative L2"),
        (_in_place, "argument 0 was changed in place"),
        (_wrong_dtype, r"returned torch.float32 .* promises torch.bfloat16"),
        (_raises, "RuntimeError: no kernel image"),
        (_unwritten, "NaN or infinities where the oracle has none"),
        (lambda x, weight, eps: x, r"run takes \['x', 'weight', 'eps'\]"),
        (lambda x, weight, eps, weight_offset=0.0: x, "has default values"),
        (lambda *args: args[0], "takes \\*args"),
    ],
)
def test_what_is_wrong_is_found(run, message):
    with pytest.raises(AssertionError, match=message):
        check_backend([_rms(run)])


def test_a_backend_that_never_runs_is_found():
    from sgl_kernels.core.selection.requires import Requires

    never = dataclasses.replace(_rms(_right), requires=Requires(platforms=frozenset({"npu"})))
    with pytest.raises(AssertionError, match="no case ran; the first was skipped for platform"):
        check_backend([never])


def test_the_example_package_joins_through_its_entry_point(tmp_path):
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    subprocess.run(["cp", "-r", str(EXAMPLE), str(source)], check=True)
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, timeout=200, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import torch, sgl_kernels\n"
        "from sgl_kernels.core.registry import registry\n"
        "from sgl_kernels.testing import check_backend\n"
        "assert registry.failures == (), registry.failures\n"
        "assert 'entry point acme' in registry.source('attention', 'acme')\n"
        "q = torch.randn(1, 8, 2, 16)\n"
        "out = sgl_kernels.attention(q, q, q, backend='acme')\n"
        "torch.testing.assert_close(out, sgl_kernels.attention(q, q, q))\n"
        "import acme_sgl\n"
        "cells = check_backend(acme_sgl.IMPLEMENTATIONS)\n"
        "print(sum(c.status == 'pass' for c in cells), sum(c.status == 'skip' for c in cells))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    passed, skipped = map(int, done.stdout.split())
    assert passed > 50 and skipped > 50
