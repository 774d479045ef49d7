"""The floor: bounded memory, chunks that change nothing, and no view of a caller's tensor."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from sgl_kernels.backends import torch_native

PEAK = """
import resource, sys, torch
from sgl_kernels.backends.torch_native import _attention, _attention_lse
torch.set_num_threads(1)
b, s, h, d = 1, 6144, 8, 32
q = torch.randn(b, s, h, d); v = torch.randn(b, s, h, d + 8)
_attention(q[:, :64], q[:, :64], v[:, :64], None, False, "bottom_right", None, -1, -1, 0.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_attention(q, q, v, None, True, "bottom_right", None, -1, -1, 5.0)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_the_math_path_never_holds_the_whole_score_matrix():
    # one score matrix is 8 * 6144 * 6144 * 4 bytes = 1,152 MiB, and unchunked softmax holds three of them
    done = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, timeout=280
    )
    peak_mib = float(done.stdout.split()[-1])
    assert peak_mib < 800, f"peak grew by {peak_mib:.0f} MiB"


@pytest.mark.parametrize("budget", [1, 4096, 1 << 30])
def test_chunks_change_nothing(budget, monkeypatch):
    q, k, v = torch.randn(2, 37, 4, 16), torch.randn(2, 50, 2, 16), torch.randn(2, 50, 2, 24)
    mask = torch.rand(2, 1, 37, 50) < 0.8
    args = (q, k, v, mask, True, "bottom_right", None, 9, -1, 3.0)
    want = torch_native._chunked(*args)
    monkeypatch.setattr(torch_native, "SCORE_BUDGET_BYTES", budget)
    for got, expected in zip(torch_native._chunked(*args), want, strict=True):
        torch.testing.assert_close(got, expected)


def test_mps_goes_in_chunks_below_two_to_the_31_elements(monkeypatch):
    asked = []
    monkeypatch.setattr(torch_native, "_chunked", lambda *a: (asked.append(a), (a[0], None))[1])
    monkeypatch.setattr(torch_native, "_limit", lambda q: torch_native.MPS_LIMIT)
    monkeypatch.setattr(torch_native, "_is_fused", lambda *a: True)
    q = torch.empty(1, 40000, 2, 8)
    torch_native._attention(q, q, q, None, False, "bottom_right", None, -1, -1, 0.0)
    assert len(asked) == 1


def test_gqa_makes_no_copies_of_the_keys():
    q, k = torch.randn(1, 64, 32, 16), torch.randn(1, 64, 1, 16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch_native._attention(q, k, k, None, False, "bottom_right", None, -1, -1, 0.0)
    assert "aten::repeat_interleave" not in {e.key for e in profile.key_averages()}
