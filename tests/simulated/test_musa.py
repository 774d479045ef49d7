"""End to end on a simulated MTT S5000, whose flash kernel sits behind SDPA's flash slot as torch_musa's does."""

from __future__ import annotations

import sys

import pytest
import torch

import sgl_kernels
from sgl_kernels.core.device import Device, probe, target_device
from sgl_kernels.core.selection.packages import installed_version
from sgl_kernels.ops.attention import reference
from tests.simulated import device, end_to_end

calls: list[str] = []


def _flash(q, k, v, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None):
    """What torch calls on a renamed device once that has chosen flash: BHSD, causal top-left, natural lse."""
    calls.append(str(q.device))
    assert dropout_p == 0.0 and attn_mask is None
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out, lse = reference.attention_lse(q, k, v, None, is_causal, "top_left", scale)
    return out.transpose(1, 2), lse


@pytest.fixture(scope="module", autouse=True)
def musa(tmp_path_factory):
    device.register("musa", "MTT S5000", (3, 1))
    folder = tmp_path_factory.mktemp("site")
    info = folder / "torch_musa-2.7.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_musa\nVersion: 2.7.0\n")
    sys.path.insert(0, str(folder))
    installed_version.cache_clear()
    library = torch.library.Library("aten", "IMPL")
    library.impl("_scaled_dot_product_flash_attention_for_cpu", _flash, "PrivateUse1")
    torch.ops.simulated.offer_flash(True)
    yield library


def test_the_device_is_recognised():
    assert probe(torch.device("musa", 0)) == Device("musa", "mp_31", (3, 1), "MTT S5000", 0)
    assert target_device("musa") == torch.device("musa")


def test_attention_reaches_the_flash_slot():
    calls.clear()
    assert "musa" in end_to_end.smoke("attention", "musa", torch.bfloat16)
    assert calls


def test_without_the_flash_kernel_the_pinned_call_is_an_error_and_not_the_unfused_path():
    q = torch.randn(1, 8, 2, 64, device="musa", dtype=torch.bfloat16)
    torch.ops.simulated.offer_flash(False)
    try:
        with pytest.raises(RuntimeError, match="No viable backend"):
            sgl_kernels.attention(q, q, q, backend="musa")
    finally:
        torch.ops.simulated.offer_flash(True)


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm", "apply_rope", "norm_scale_shift", "silu_mul"])
def test_other_ops(op):
    served = end_to_end.smoke(op, "musa", torch.float16)
    assert served <= {"musa", "torch"} and ("musa" in served) == (op == "rms_norm")


def test_compiled():
    end_to_end.compiled_block("musa")


def test_errors():
    end_to_end.errors_name_the_device("musa")
