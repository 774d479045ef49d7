"""Our quantiser against vectors made by independent implementations (benchmarks/nvfp4/agreement.py made them)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sgl_kernels.ops.nvfp4 import reference

VECTORS = Path(__file__).resolve().parents[2] / "data" / "nvfp4_vectors.safetensors"
CASES = (
    "normal",
    "blocks of wild size",
    "outlier 200 and a tiny row",
    "zero blocks",
    "ties",
    "negative zeros",
)
OTHERS = ("torchao", "modelopt", "compressed-tensors", "comfy-kitchen", "mlx")


def read(*names: str) -> list[torch.Tensor]:
    with safe_open(VECTORS, "pt") as file:
        return [file.get_tensor(n) for n in names]


def quantised(case: str):
    x, scale = read(f"input/{case}", f"global_scale/{case}")
    data, block_scale, _ = reference.nvfp4_quantize(x, scale, "nvfp4", False)
    return x, data, block_scale.float(), scale


def codes(packed: torch.Tensor) -> torch.Tensor:
    return torch.stack((packed & 15, packed >> 4), -1).flatten(-2)


@pytest.mark.parametrize("case", CASES)
def test_flashinfers_reference_is_matched_to_the_bit(case):
    _, data, scales, _ = quantised(case)
    their_data, their_scales = read(f"flashinfer/{case}/codes", f"flashinfer/{case}/scales")
    assert torch.equal(scales, their_scales)
    assert torch.equal(data, their_data)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("library", OTHERS)
def test_other_libraries_differ_only_where_rounding_may_go_either_way(library, case):
    x, data, scales, scale = quantised(case)
    their_data, their_scales = read(f"{library}/{case}/codes", f"{library}/{case}/scales")
    live = (scales > 0) & (their_scales > 0)
    step = torch.where(live, scales / their_scales.clamp(min=1e-30), 1.0)
    # One e4m3 step apart at most, except below torchao's floor of 2^-6.
    near = (step > 0.8) & (step < 1.25)
    assert (near | (their_scales == 2.0**-6)).all()
    values = reference.unit_values(data, torch.float32) * scales.repeat_interleave(16, -1) * scale
    theirs = reference.unit_values(their_data, torch.float32) * their_scales.repeat_interleave(16, -1) * scale
    size = x.float().norm()
    assert abs((values - x.float()).norm() - (theirs - x.float()).norm()) <= 0.005 * size
    agree = (scales == their_scales).repeat_interleave(16, -1)
    a, b = codes(data) & 7, codes(their_data) & 7
    apart = (a.int() - b.int()).abs()[agree]
    assert apart.numel() == 0 or apart.max() <= 1
    if not (library == "mlx" and case == "ties"):  # mlx rounds ties to the smaller magnitude
        assert (apart > 0).float().mean().nan_to_num() <= 0.02
