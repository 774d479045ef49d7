"""FP4 scales that lie on a device: read once, before their first use, in a layout that stays as it is."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import sgl_kernels
from sgl_kernels.integrations.nvfp4_linear import NVFP4Linear
from sgl_kernels.ops.nvfp4.formats import ScaledTensor

SPOILT = {
    "negative": "block_scale has 1 negative values of 384; block scales are 0 or more",
    "-1": "global_scale is -1.0, expected a positive finite number",
    "0": "global_scale is 0.0, expected a positive finite number",
    "nan": "global_scale is nan, expected a positive finite number",
}


def weight(change: str, device: str) -> ScaledTensor:
    """A weight put together on the device, of which nobody has seen a scale."""
    w = sgl_kernels.nvfp4_quantize(torch.randn(64, 96))
    raw, total = w.block_scale.view(torch.uint8).clone(), w.global_scale.clone()
    if change == "negative":
        raw[3, 2] = 0xC0
    elif change:
        total.fill_(float(change))
    scale = raw.to(device).view(w.block_scale.dtype)
    return ScaledTensor(w.data.to(device), scale, total.to(device), w.format, w.shape)


def holding(w: ScaledTensor) -> NVFP4Linear:
    layer = NVFP4Linear(96, 64, bias=False, device=w.device)
    layer.set_weight(w)
    return layer


def refused(change: str, device: str) -> None:
    """By whoever uses the weight, and by the second call as by the first."""
    x, w = torch.randn(3, 96, device=device), weight(change, device)
    layer = holding(w)
    for name, call in (
        ("nvfp4_linear: weight", lambda: sgl_kernels.nvfp4_linear(x, w)),
        ("nvfp4_dequantize: x", lambda: sgl_kernels.nvfp4_dequantize(w)),
        ("NVFP4Linear: weight", lambda: layer(x)),
    ):
        for _ in range(2):
            with pytest.raises(ValueError, match=re.escape(f"{name}: {SPOILT[change]}")):
                call()
    good = holding(weight("", device))
    good(x)
    good.load_state_dict(layer.state_dict())  # tensors on the device, copied into buffers that were looked at
    with pytest.raises(ValueError, match=re.escape(SPOILT[change])):
        good(x)


def looked_at_once(device: str, monkeypatch: Any) -> None:
    """Not while a graph is recorded, not twice, and not where the scales were seen before they were moved."""
    x, w = torch.randn(3, 96, device=device), weight("", device)
    module = getattr(torch, device)
    with monkeypatch.context() as patch:
        patch.setattr(module, "is_current_stream_capturing", lambda: True, raising=False)
        bad = weight("negative", device)
        sgl_kernels.nvfp4_linear(x, bad)
        assert not bad.examined
    with pytest.raises(ValueError, match="nvfp4_linear: weight: block_scale"):
        sgl_kernels.nvfp4_linear(x, bad)

    looks = []
    check = ScaledTensor.check_scales
    monkeypatch.setattr(
        ScaledTensor,
        "check_scales",
        lambda self, anywhere=False, of="": (
            looks.append(of) if anywhere else None,
            check(self, anywhere, of),
        ),
    )
    first = holding(w)
    want = [sgl_kernels.nvfp4_linear(x, w), sgl_kernels.nvfp4_linear(x, w), first(x), first(x)]
    assert looks == ["nvfp4_linear: weight: ", "NVFP4Linear: weight: "], looks
    moved = holding(weight("", "cpu")).to(device)  # its scales were seen before the move
    known = sgl_kernels.nvfp4_quantize(torch.randn(64, 96, device=device))
    for call in (lambda: moved(x), lambda: holding(w)(x), lambda: sgl_kernels.nvfp4_linear(x, known)):
        call()
    assert len(looks) == 2
    assert all(torch.equal(o.cpu(), want[0].cpu()) for o in want)
