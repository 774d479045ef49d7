"""Ascend by contract: calls bound by torch against the schemas of the torch_npu wheel, results by its semantics."""

from __future__ import annotations

import inspect
import sys

import pytest
import torch
from packaging.version import Version

import sgl_kernels
from sgl_kernels.core.registry import Registry, registry
from sgl_kernels.core.selection.verdict import Reason, Rejected
from tests.backends import contract, npu_ops

OPS = [i.op for name in registry.ops() for i in registry.implementations(name) if i.backend == "ascend"]
AT_LEAST = {"attention": 30, "attention_lse": 30, "rms_norm": 14, "group_norm": 3, "apply_rope": 20}


@pytest.fixture(scope="module")
def torch_npu():
    library, module = npu_ops.define("npu_contract", "CPU")
    yield module
    library._destroy()


@pytest.mark.parametrize("op", OPS)
def test_contract(op, torch_npu, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_npu", torch_npu)
    contract.check(op, "ascend", at_least=AT_LEAST.get(op, 6))


def test_the_fakes_have_the_wheels_arguments():
    """The kernels beside the schemas: same names, same order, same defaults."""
    for schema in npu_ops.schemas():
        parsed = torch._C.parse_schema(schema)
        parameters = inspect.signature(npu_ops.KERNELS[parsed.name]).parameters
        assert [a.name for a in parsed.arguments] == list(parameters)
        for argument in parsed.arguments:
            if argument.has_default_value():
                assert parameters[argument.name].default == pytest.approx(argument.default_value)


def test_every_op_that_is_called_is_in_the_wheels_schemas():
    source = inspect.getsource(sys.modules["sgl_kernels.backends.ascend"])
    called = {word for word in npu_ops.KERNELS if f"torch_npu.{word}" in source}
    assert called == set(npu_ops.KERNELS) and source.count("torch_npu.npu_") == len(called)


def test_a_row_without_keys_is_zero_with_an_lse_of_minus_infinity(torch_npu, monkeypatch):
    """The fused op answers with the mean of all values there."""
    monkeypatch.setitem(sys.modules, "torch_npu", torch_npu)
    q = torch.randn(1, 4, 2, 16, dtype=torch.bfloat16)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 2, :] = False
    run = contract.implementation("attention_lse", "ascend").load(None)
    out, lse = run(q, q, q, mask, False, "bottom_right", None, -1, -1, 0.0)
    assert (out[:, 2] == 0).all() and (lse[..., 2] == -float("inf")).all()
    assert torch.isfinite(lse[..., :2]).all() and (out[:, :2] != 0).any()


def test_the_wrong_meaning_of_a_mask_is_caught(torch_npu, monkeypatch):
    keeps = torch_npu.npu_fusion_attention

    def true_is_keep(*args, atten_mask=None, **kw):
        return keeps(*args, atten_mask=None if atten_mask is None else ~atten_mask, **kw)

    monkeypatch.setitem(sys.modules, "torch_npu", torch_npu)
    monkeypatch.setattr(torch_npu, "npu_fusion_attention", true_is_keep)
    with pytest.raises(AssertionError):
        contract.check("attention", "ascend", at_least=1)


def test_torch_npu_without_cann_is_a_load_failure(tmp_path, monkeypatch):
    """The wheel installs anywhere; without CANN its import raises."""
    (tmp_path / "torch_npu").mkdir()
    (tmp_path / "torch_npu" / "__init__.py").write_text(
        "raise ImportError('libhccl.so: cannot open shared object file: No such file or directory')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)
    found = Registry().loaded(contract.implementation("attention", "ascend"), None)
    assert isinstance(found, Rejected) and found.reason is Reason.LOAD and "libhccl.so" in found.detail


def test_masks_past_512_keys_are_turned_away():
    q = torch.empty(1, 8, 2, 64, device="meta", dtype=torch.half)
    k = torch.empty(1, 513, 2, 64, device="meta", dtype=torch.half)
    mask = torch.empty(1, 1, 1, 513, device="meta", dtype=torch.bool)
    there = {"device": "npu:ascend910b", "version_of": {"torch-npu": Version("2.13")}.get}
    masked = sgl_kernels.explain("attention", q, k, k, attn_mask=mask, **there)
    assert masked.rejected("ascend").reason is Reason.BUG
    assert sgl_kernels.explain("attention", q, k, k, **there).chosen == "ascend"
