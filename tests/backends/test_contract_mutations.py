"""What a contract is worth: an adapter that passes one thing wrong must fail it, for every vendor and mistake."""

from __future__ import annotations

import contextlib
import inspect
import math

import pytest
import torch

from tests.backends import contract, npu_ops, test_aiter, test_flash_attn
from tests.backends import test_sage_xformers_flashinfer as others

XFORMERS = {
    "xformers.ops": {"memory_efficient_attention": others.memory_efficient_attention},
    "xformers.ops.fmha.attn_bias": {
        "LowerTriangularMask": others.LowerTriangularMask,
        "LowerTriangularFromBottomRightMask": others.LowerTriangularFromBottomRightMask,
    },
}
FA = "flash_attn.flash_attn_interface"
SAGE = {"sageattention": {"sageattn": others.sageattn_v2}}
SAGE3 = {"sageattn3": {"sageattn3_blackwell": others.sageattn3_blackwell}}
# backend: its modules, the module and the function called, the keywords of the scale and of causal, if it has a window
VENDORS = {
    "fa2": (test_flash_attn.FAKES["fa2"], FA, "flash_attn_func", "softmax_scale", "causal", True),
    "fa3": (
        test_flash_attn.FAKES["fa3"], "flash_attn_interface", "flash_attn_func", "softmax_scale", "causal", True,
    ),
    "fa4": (test_flash_attn.FAKES["fa4"], "flash_attn.cute", "flash_attn_func", "softmax_scale", "causal", True),
    "aiter": (test_aiter._modules(), "aiter.ops.mha", "flash_attn_func", "softmax_scale", "causal", True),
    "sage_attn": (SAGE, "sageattention", "sageattn", "sm_scale", "is_causal", False),
    "sage_attn3": (SAGE3, "sageattn3", "sageattn3_blackwell", "", "is_causal", False),
    "xformers": (XFORMERS, "xformers.ops", "memory_efficient_attention", "scale", "", False),
    "flashinfer": (
        others.FLASHINFER, "flashinfer.prefill", "single_prefill_with_kv_cache", "sm_scale", "causal", True,
    ),
}  # fmt: skip


def _swapped(fake):
    return lambda q, k, v, **kw: fake(q, v, k, **kw)


def _layout(fake):
    """Tokens for heads and back: what a forgotten or a doubled transpose does."""

    def turned(t):
        return t.transpose(-3, -2).contiguous()

    def call(q, k, v, **kw):
        if q.shape[-2] != k.shape[-2] or q.shape[-3] != k.shape[-3]:
            raise AssertionError("heads and lengths differ: the real call would raise")
        out = fake(turned(q), turned(k), turned(v), **kw)
        return (turned(out[0]), *out[1:]) if isinstance(out, tuple) else turned(out)

    return call


def _without(fake, keyword, value):
    return lambda *args, **kw: fake(*args, **{**kw, keyword: value})


def _mutations(backend):
    _, _, _, scale, causal, window = VENDORS[backend]
    yield "swapped", _swapped
    yield "layout", _layout
    if scale:
        yield "no scale", lambda fake: _without(fake, scale, None)
    if causal:
        yield "no causal", lambda fake: _without(fake, causal, False)
    if window:
        unlimited = {"fa4": (None, None), "aiter": (-1, -1, 0)}.get(backend, (-1, -1))
        key, value = ("window_left", -1) if backend == "flashinfer" else ("window_size", unlimited)
        yield "no window", lambda fake: _without(fake, key, value)


PAIRS = [(backend, name, mutate) for backend in VENDORS for name, mutate in _mutations(backend)]


@pytest.mark.parametrize("backend, name, mutate", PAIRS, ids=[f"{b}-{n}" for b, n, _ in PAIRS])
def test_a_mistake_in_an_adapter_is_seen(backend, name, mutate, monkeypatch):
    modules, module, function, *_ = VENDORS[backend]
    changed = {m: dict(members) for m, members in modules.items()}
    fake = changed[module][function]
    mutated = mutate(fake)
    if backend in ("aiter", "sage_attn"):  # these adapters ask for the signature
        mutated.__signature__ = inspect.signature(fake)
    changed[module][function] = mutated
    contract.install(monkeypatch, changed)
    with pytest.raises((AssertionError, RuntimeError, TypeError)):
        contract.check("attention", backend, at_least=1, tolerance=2)


@pytest.mark.parametrize("backend", [b for b in VENDORS if b in ("fa2", "fa3", "fa4", "aiter", "flashinfer")])
def test_a_log_sum_exp_of_the_other_base_is_seen(backend, monkeypatch):
    modules, module, function, *_ = VENDORS[backend]
    changed = {m: dict(members) for m, members in modules.items()}
    fake = changed[module][function]

    def other_base(*args, **kw):
        out, lse, *rest = fake(*args, **kw)
        return (out, lse * math.log(2.0), *rest)

    other_base.__signature__ = inspect.signature(fake)
    changed[module][function] = other_base
    contract.install(monkeypatch, changed)
    with pytest.raises(AssertionError):
        contract.check("attention_lse", backend, at_least=1)


@pytest.mark.parametrize("name, change", [
    ("scale", {"scale": 1.0}), ("causal", {"sparse_mode": 0, "atten_mask": None}),
])  # fmt: skip
def test_ascends_contract_sees_them_too(name, change, monkeypatch):
    import sys

    library, module = npu_ops.define("npu_mutations", "CPU")
    try:
        real = module.npu_fusion_attention
        monkeypatch.setattr(module, "npu_fusion_attention", lambda *a, **kw: real(*a, **{**kw, **change}))
        monkeypatch.setitem(sys.modules, "torch_npu", module)
        with pytest.raises(AssertionError):
            contract.check("attention", "ascend", at_least=1)
    finally:
        library._destroy()


@pytest.mark.parametrize("backend", ["xpu", "musa"])
def test_a_wrong_order_through_the_pinned_slot_is_seen(backend, monkeypatch):
    monkeypatch.setattr(torch.nn.attention, "sdpa_kernel", lambda choice: contextlib.nullcontext())
    run = contract.implementation("attention", backend).load(None)
    with pytest.raises(AssertionError):
        contract.check("attention", backend, at_least=1, run=lambda q, k, v, *rest: run(q, v, k, *rest))
