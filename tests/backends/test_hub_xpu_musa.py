"""hf_kernels through a fake and a real local kernel; xpu and musa through the pinned SDPA slot."""

from __future__ import annotations

import contextlib
import json
import types

import pytest
import torch
import torch.nn.attention

from sgl_kernels.core.device import parse_device
from tests.backends import contract
from tests.backends.test_flash_attn import fa2_func, fa2_varlen, fa3_func, fa3_varlen


def _fa3_before_the_keyword(
    q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
    window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
    sm_margin=0,
):  # fmt: skip
    return fa3_func(
        q, k, v, softmax_scale, causal, window_size=window_size, softcap=softcap, return_attn_probs=True
    )


HUB = {
    "kernels-community/flash-attn2": [(fa2_func, fa2_varlen)],
    "kernels-community/flash-attn3": [(fa3_func, fa3_varlen), (_fa3_before_the_keyword, fa3_varlen)],
}


def _get_kernel(offered, asked):
    def get_kernel(
        repo_id, *, revision=None, version=None, backend=None, user_agent=None, trust_remote_code=False, check_arch=True
    ):  # fmt: skip
        assert isinstance(version, int) and revision is None
        asked.append(repo_id)
        dense, packed = offered
        return types.SimpleNamespace(flash_attn_func=dense, flash_attn_varlen_func=packed)

    return get_kernel


@pytest.mark.parametrize(
    "repo, build", [(repo, i) for repo, builds in HUB.items() for i in range(len(builds))]
)
@pytest.mark.parametrize("op, at_least", [("attention", 30), ("attention_lse", 30), ("attention_varlen", 6)])
def test_hub_contract(repo, build, op, at_least, monkeypatch):
    hopper, asked = repo.endswith("3"), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: hopper)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: (9, 0))
    contract.install(monkeypatch, {"kernels": {"get_kernel": _get_kernel(HUB[repo][build], asked)}})
    contract.check(
        op, "hf_kernels", at_least=at_least, run=contract.implementation(op, "hf_kernels").load(None)
    )
    assert asked == [repo]


def test_hub_with_a_real_local_kernel(tmp_path, monkeypatch):
    """The package `kernels` itself imports the build and hands over its functions."""
    kernels = pytest.importorskip("kernels", reason="pip install kernels to load a real local kernel")
    build = tmp_path / "build" / "torch-universal"
    build.mkdir(parents=True)
    source = "tests.backends.test_flash_attn"
    names = "fa2_func as flash_attn_func, fa2_varlen as flash_attn_varlen_func"
    (build / "__init__.py").write_text(f"from {source} import {names}\n")
    metadata = {"id": "local_fa", "version": 1, "name": "local-fa", "license": "Apache-2.0", "python-depends": [],
                "backend": {"type": "cpu"}}  # fmt: skip
    (build / "metadata.json").write_text(json.dumps(metadata))
    monkeypatch.setattr(kernels, "get_kernel", lambda repo, version: kernels.get_local_kernel(tmp_path))
    contract.check("attention", "hf_kernels", at_least=30)


def test_hub_is_never_chosen_unasked():
    """Its first call downloads code."""
    facts = types.SimpleNamespace(dtype=torch.bfloat16)
    for arch in ("sm80", "sm86", "sm89", "sm90", "sm100", "sm120"):
        assert (
            contract.implementation("attention", "hf_kernels").rank_for(facts, parse_device(f"cuda:{arch}"))
            < 0
        )


@pytest.mark.parametrize("backend, slot", [("xpu", "OVERRIDEABLE"), ("musa", "FLASH_ATTENTION")])
def test_pinned_slot(backend, slot, monkeypatch):
    """Every accepted call is made with that slot and no other; the CPU's kernel stands in for the device's."""
    pinned = []

    @contextlib.contextmanager
    def sdpa_kernel(choice):
        pinned.append(choice.name)
        yield

    monkeypatch.setattr(torch.nn.attention, "sdpa_kernel", sdpa_kernel)
    contract.check("attention", backend, at_least=20, proof="simulated")
    assert set(pinned) == {slot}


def test_musa_rms_norm():
    contract.check("rms_norm", "musa", at_least=15, proof="simulated")
