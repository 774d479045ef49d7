"""torch's own kernels, pinned: the slot each call is made with, and its meaning, on the CPU in place of the GPU."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.attention

import sgl_kernels
from tests.backends import contract

SLOTS = {
    "torch_cudnn": "CUDNN_ATTENTION",
    "torch_flash": "FLASH_ATTENTION",
    "torch_efficient": "EFFICIENT_ATTENTION",
}


@pytest.mark.parametrize("backend", SLOTS)
def test_pinned_kernel(backend, monkeypatch):
    """Every accepted call is made with that slot and no other; torch's CPU kernels stand in for the GPU's."""
    pinned = []

    @contextlib.contextmanager
    def sdpa_kernel(choice):
        pinned.append(choice.name)
        yield

    monkeypatch.setattr(torch.nn.attention, "sdpa_kernel", sdpa_kernel)
    contract.check("attention", backend, at_least=20, proof="simulated")
    assert set(pinned) == {SLOTS[backend]}


def test_flex(monkeypatch):
    """flex attention itself, not compiled: its score function has the meaning of every argument."""
    monkeypatch.setattr(torch, "compile", lambda function, **kw: function)
    contract.check("attention", "flex", at_least=30, proof="simulated")


@pytest.mark.parametrize("backend", [*SLOTS, "flex"])
def test_a_mistake_is_seen(backend, monkeypatch):
    if backend in SLOTS:
        monkeypatch.setattr(torch.nn.attention, "sdpa_kernel", lambda choice: contextlib.nullcontext())
    monkeypatch.setattr(torch, "compile", lambda function, **kw: function)
    run = contract.implementation("attention", backend).load(None)
    with pytest.raises(AssertionError):
        contract.check("attention", backend, at_least=1, run=lambda q, k, v, *rest: run(q, v, k, *rest))


def test_a_preferred_pinned_kernel_takes_tensors_of_any_strides():
    """Torch's fused kernels refuse rows that are not contiguous; preferring one must not end in their error."""
    dtype = torch.bfloat16
    for q in (
        torch.randn(1, 8, 2, 32, dtype=dtype)[..., ::2],
        torch.randn(1, 16, 2, 8, dtype=dtype).permute(0, 3, 2, 1),
        torch.randn(1, 8, 2, 1, dtype=dtype).expand(1, 8, 2, 16),
    ):
        with sgl_kernels.use(attention="torch_flash", strict=True):
            have = sgl_kernels.attention(q, q, q)
        want = sgl_kernels.attention(q.double(), q.double(), q.double(), backend="torch")
        torch.testing.assert_close(have.double(), want, atol=2e-2, rtol=2e-2)
