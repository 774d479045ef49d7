"""Why a backend goes first, in words: every rank above the floor says what it rests on."""

from __future__ import annotations

import json

import pytest
import torch

import sgl_kernels
from sgl_kernels.backends import _measured
from sgl_kernels.backends._measured import measured
from sgl_kernels.backends._order import ORDER
from sgl_kernels.core.device import parse_device
from sgl_kernels.core.registry import registry
from sgl_kernels.core.selection.implementation import Place

DEVICES = (
    "cuda:sm75", "cuda:sm80", "cuda:sm89", "cuda:sm90", "cuda:sm100", "cuda:sm120", "rocm:gfx942", "rocm:gfx950",
    "xpu:xe2", "npu:ascend910b", "musa:mp_31", "mps:m3", "cpu:avx2", "cpu:avx512", "cpu:avx512bf16", "cpu:neon",
    "cpu:baseline",
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(registry.ops()))
def test_every_place_above_the_floor_says_what_it_rests_on(name):
    op = registry.op(name)
    cases = op.cases()
    facts = {op.facts(*op.canonical(*c.fake(d))) for c in cases[:: max(1, len(cases) // 8)] for d in c.dtypes}
    for implementation in registry.implementations(name):
        for device in map(parse_device, DEVICES):
            for f in facts:
                rank = implementation.rank_for(f, device)
                assert rank <= 0 or (isinstance(rank, Place) and rank.evidence), (implementation, device, f)


@pytest.mark.parametrize("arch", ["avx2", "avx512", "avx512bf16"])
def test_what_was_measured_is_said_where_it_was_measured(arch):
    x = torch.empty(256, 768, device="meta")
    row = next(
        r for r in json.loads(_measured.PATH.read_text())
        if (r["backend"], r["op"], r["arch"]) == ("cpu", "rms_norm", arch)
    )  # fmt: skip
    found = sgl_kernels.explain("rms_norm", x, device=f"cpu:{arch}")
    assert found.chosen == "cpu"
    assert found.why == f"{row['ratio']}x torch's speed over {row['cases']} cases, {row['file']}"


def test_elsewhere_it_says_so():
    x = torch.empty(256, 768, device="meta")
    why = sgl_kernels.explain("rms_norm", x, device="cpu:neon").why
    assert why.startswith("not measured on neon; ") and "benchmarks/results/" in why


def test_a_rank_at_or_below_the_floor_has_no_claim():
    for rank in (0, -1):
        assert not isinstance(measured("cpu", "rms_norm", rank)(None, parse_device("cpu:avx2")), Place)
    assert measured("nobody", "rms_norm", 50)(None, parse_device("cpu:avx2")) == 50


def test_a_row_of_the_order_says_who_is_where():
    q = torch.empty(1, 4608, 24, 128, dtype=torch.bfloat16, device="meta")
    row = next(r for r in ORDER if (r.family, r.group) == ("blackwell", "attention"))
    found = sgl_kernels.explain("attention", q, q, q, device="cuda:sm100", version_of=lambda name: None)
    assert found.chosen == row.order[0] and found.why == f"first on blackwell: {row.evidence}"
