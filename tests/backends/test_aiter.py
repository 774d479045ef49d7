"""AITER by contract: flash attention with a window of two or three numbers, CK norms, the VAE's group norm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from packaging.version import Version

from sgl_kernels.core.device import parse_device
from sgl_kernels.core.dispatch import Dispatcher
from sgl_kernels.core.registry import registry
from sgl_kernels.core.selection import packages
from sgl_kernels.core.selection.verdict import Reason
from sgl_kernels.core.settings import OpPolicy, Settings
from sgl_kernels.core.settings.sections import Rocm
from sgl_kernels.ops.attention import reference
from tests.backends import contract

MI300X = parse_device("rocm:gfx942")


def _fake_dense(sides):
    """amd-aiter 0.1.7 has a window of two numbers; since attention sinks there are three."""

    def flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1, 0)[:sides], bias=None,
        alibi_slopes=None, deterministic=True, return_lse=False, return_attn_probs=False, how_v3_bf16_cvt=1,
        cu_seqlens_q=None, cu_seqlens_kv=None, sink_ptr=None, num_splits=0,
    ):  # fmt: skip
        assert dropout_p == 0.0 and len(window_size) == sides and all(t.stride(-1) == 1 for t in (q, k, v))
        left, right = window_size[:2]
        out, lse = reference.attention_lse(
            q, k, v, None, causal, "bottom_right", softmax_scale, left, right, 0.0
        )
        return (out, lse) if return_lse else out

    return flash_attn_func


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, min_seqlen_q=0, dropout_p=0.0,
    softmax_scale=None, logits_soft_cap=0.0, causal=False, window_size=(-1, -1, 0), bias=None, alibi_slopes=None,
    deterministic=False, return_lse=False, return_attn_probs=False, how_v3_bf16_cvt=1, block_table=None, out=None,
    cu_seqlens_q_padded=None, cu_seqlens_k_padded=None, sink_ptr=None,
):  # fmt: skip
    assert min_seqlen_q == 0 and logits_soft_cap == 0.0 and len(window_size) == 3 and window_size[2] == 0
    return reference.attention_varlen(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        causal,
        softmax_scale,
        *window_size[:2],
        0.0,
    )


def rms_norm(input, weight, epsilon, use_model_sensitive_rmsnorm=0):
    assert input.ndim == 2 and input.dtype == weight.dtype and use_model_sensitive_rmsnorm == 0
    return F.rms_norm(input.float(), weight.shape, weight.float(), epsilon).to(input.dtype)


def layer_norm(input, weight=None, bias=None, epsilon=1e-5, x_bias=None):
    assert input.ndim == 2 and x_bias is None and input.dtype == weight.dtype == bias.dtype
    return F.layer_norm(input.float(), weight.shape, weight.float(), bias.float(), epsilon).to(input.dtype)


def groupnorm_run(input, num_groups, weight, bias, eps):
    """groupnorm.cu: sums of x and x * x in fp32, and one weight for four elements."""
    assert input.dtype == weight.dtype == bias.dtype
    n, c = input.shape[:2]
    groups = input.contiguous().float().reshape(n, num_groups, -1)
    mean = groups.mean(-1, keepdim=True)
    variance = (groups * groups).mean(-1, keepdim=True) - mean * mean
    y = ((groups - mean) * torch.rsqrt(variance + eps)).reshape(n, c, -1)
    assert y.shape[-1] % 4 == 0
    y = y * weight.float()[:, None] + bias.float()[:, None]
    return y.to(input.dtype).reshape(input.shape)


def _modules(sides=3):
    return {
        "aiter.ops.mha": {
            "flash_attn_func": _fake_dense(sides),
            "flash_attn_varlen_func": flash_attn_varlen_func,
        },
        "aiter.ops.rmsnorm": {"rms_norm": rms_norm},
        "aiter.ops.norm": {"layer_norm": layer_norm},
        "aiter.ops.groupnorm": {"groupnorm_run": groupnorm_run},
    }


@pytest.mark.parametrize("sides", [2, 3])
@pytest.mark.parametrize("op, at_least", [("attention", 24), ("attention_lse", 24)])
def test_dense_contract(op, at_least, sides, monkeypatch):
    contract.install(monkeypatch, _modules(sides))
    contract.check(op, "aiter", at_least=at_least)


@pytest.mark.parametrize("op, at_least", [("attention_varlen", 6), ("rms_norm", 6), ("layer_norm", 6)])
def test_contract(op, at_least, monkeypatch):
    contract.install(monkeypatch, _modules())
    contract.check(op, "aiter", at_least=at_least)


def test_group_norm_contract(monkeypatch):
    contract.install(monkeypatch, _modules())
    contract.check("group_norm", "aiter", at_least=4, tolerance=4)  # one-pass variance costs digits in fp32


def _group_norm(x, **settings):
    op = registry.op("group_norm")
    weight = torch.ones(x.shape[1], dtype=x.dtype, device=x.device)
    facts = op.facts(*op.canonical(x, 8, weight, weight))
    versions = {"amd-aiter": Version("0.1.7")}
    return Dispatcher(Settings(**settings)).decide(op, None, facts, MI300X, versions.get)


def test_group_norm_waits_for_its_flag():
    x = torch.empty(1, 64, 8, 8, device="meta", dtype=torch.bfloat16)
    off, on = _group_norm(x), _group_norm(x, rocm=Rocm(vae=True))
    named = _group_norm(x, ops=(("group_norm", OpPolicy(prefer=("aiter",))),))
    assert off.rejected("aiter").hint == "export SGLANG_USE_ROCM_VAE=1" and off.chosen != "aiter"
    assert on.chosen == named.chosen == "aiter"


@pytest.mark.parametrize(
    "shape, why",
    [((1, 64, 7, 5), "35 positions"), ((2, 64, 1 << 13, 1 << 12), "32-bit"), ((0, 64, 8, 8), "empty")],
)
def test_group_norm_keeps_away_from_what_its_kernel_gets_wrong(shape, why):
    x = torch.empty(shape, device="meta", dtype=torch.bfloat16)
    assert why in _group_norm(x, rocm=Rocm(vae=True)).rejected("aiter").detail


def _presence():
    packages.installed_version.cache_clear()
    try:
        requires = contract.implementation("attention", "aiter").requires
        return requires.rejects(torch.bfloat16, MI300X, packages.installed_version)
    finally:
        packages.installed_version.cache_clear()


def test_the_async_package_is_not_taken_for_amds(tmp_path, monkeypatch):
    (tmp_path / "aiter").mkdir()
    (tmp_path / "aiter" / "__init__.py").write_text("raise RuntimeError('nobody may import this to look')")
    monkeypatch.syspath_prepend(tmp_path)
    rejected = _presence()
    assert rejected.reason is Reason.PACKAGE and "async" in rejected.detail and "ROCm/aiter" in rejected.hint


def test_a_source_build_without_metadata_is_found_and_not_imported(tmp_path, monkeypatch):
    for part in ("ops", "jit"):
        (tmp_path / "aiter" / part).mkdir(parents=True)
        (tmp_path / "aiter" / part / "__init__.py").write_text("")
    (tmp_path / "aiter" / "__init__.py").write_text("raise RuntimeError('importing AITER builds kernels')")
    monkeypatch.syspath_prepend(tmp_path)
    assert _presence() is None


def test_nothing_installed():
    assert _presence().detail == "amd-aiter is not installed"
