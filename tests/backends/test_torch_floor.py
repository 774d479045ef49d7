"""The floor: bounded memory, chunks that change nothing, and no view of a caller's tensor."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from sgl_kernels.backends import _torch_chunked, torch_native

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
    want = torch_native.chunked(*args)
    monkeypatch.setattr(_torch_chunked, "SCORE_BUDGET_BYTES", budget)
    for got, expected in zip(torch_native.chunked(*args), want, strict=True):
        torch.testing.assert_close(got, expected)


def test_mps_goes_in_chunks_below_two_to_the_31_elements(monkeypatch):
    asked = []
    monkeypatch.setattr(torch_native, "chunked", lambda *a: (asked.append(a), (a[0], None))[1])
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


def _choosing(monkeypatch, unfused):
    """torch's choice on a GPU: `unfused(q, k, mask)` says for which BHSD tensors it would hold all scores."""
    asked = []

    def choice(q, k, v, mask, dropout, causal, *, scale, enable_gqa):
        assert enable_gqa == (q.shape[1] != k.shape[1])
        asked.append(tuple(k.shape))
        return 0 if unfused(q, k, mask) else 2

    monkeypatch.setattr(torch, "_fused_sdp_choice", choice)
    return asked


def test_grouped_heads_with_a_mask_stay_off_the_unfused_path(monkeypatch):
    """diffusers 14518: 45 GiB for one call. torch's kernel with masks knows no grouped heads, so K is repeated."""
    asked = _choosing(monkeypatch, lambda q, k, mask: q.shape[1] != k.shape[1])
    q, k = torch.randn(1, 8, 4, 16), torch.randn(1, 8, 2, 16)
    mask = torch.rand(1, 1, 8, 8) < 0.9
    got = torch_native._on_device(q, k, k, mask, False, None)
    torch.testing.assert_close(
        got, torch_native.chunked(q, k, k, mask, False, "top_left", None, -1, -1, 0.0)[0]
    )
    assert asked == [(1, 2, 8, 16), (1, 4, 8, 16)]


def test_what_torch_would_not_fuse_goes_in_chunks(monkeypatch):
    _choosing(monkeypatch, lambda *a: True)
    q = torch.randn(1, 8, 4, 16)
    assert torch_native._on_device(q, q, q, None, False, None) is None


def test_a_plain_call_is_not_asked_about(monkeypatch):
    asked = _choosing(monkeypatch, lambda *a: True)
    q = torch.randn(1, 8, 4, 16, dtype=torch.bfloat16)
    assert torch_native._on_device(q, q, q, None, True, None).shape == q.shape and not asked


def test_torchs_own_answer_is_understood():
    """On this machine: one head size for values is fused, two are not."""
    q, v = torch.randn(1, 4, 8, 16), torch.randn(1, 4, 8, 24)
    assert not torch_native._materialises(q, q, q, None, False, None)
    assert torch_native._materialises(q, q, v, None, False, None)


@pytest.mark.parametrize(
    "arch, kv_heads, spared",
    [("sm100", 4, True), ("sm103", 1, True), ("sm100", 8, False), ("sm90", 4, False)],
)
def test_the_floor_keeps_away_from_cudnn_where_it_is_wrong(arch, kv_heads, spared, monkeypatch):
    """pytorch 193893: rejecting the pinned backend is no help while torch itself chooses cuDNN first."""
    from sgl_kernels.core.device import parse_device

    class Cuda:
        device = torch.device("cuda", 0)
        shape = (1, 64, kv_heads, 64)

    torch_native._is_datacenter_blackwell.cache_clear()
    monkeypatch.setattr(torch_native, "probe", lambda device: parse_device(f"cuda:{arch}"))
    try:
        with torch_native._without_cudnn(Cuda, Cuda):
            assert torch.backends.cuda.cudnn_sdp_enabled() != spared
            assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
    finally:
        torch_native._is_datacenter_blackwell.cache_clear()


def test_masks_on_xpu_go_in_chunks():
    class Xpu:
        device, is_cpu = torch.device("xpu"), False
        dtype = torch.bfloat16
        shape = (1, 8, 4, 64)

    assert torch_native._is_fused(Xpu, Xpu, Xpu, None) and not torch_native._is_fused(Xpu, Xpu, Xpu, Xpu)
