"""Whole models: the same output as stock before, while applied and after, bit for bit where nothing is served."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import sgl_kernels
from sgl_kernels.integrations.norms import group_norm_silu
from tests.integrations import tiny

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

# What each model must get from the registry; a norm or an attention that slips away shows here.
SERVED = {
    "flux": {"attention": 2, "norm_scale_shift": 4, "layer_norm": 2, "rms_norm": 6, "gelu_tanh": 1},
    "wan": {"attention": 4, "layer_norm": 7, "rms_norm": 8, "gelu_tanh": 1},
    "sd3": {"attention": 3, "norm_scale_shift": 4, "layer_norm": 4, "rms_norm": 10},
    "qwen_image": {"attention": 2, "norm_scale_shift": 1, "layer_norm": 8, "rms_norm": 9},
    "dit": {"attention": 2, "norm_scale_shift": 2, "layer_norm": 3},
    "vae": {"attention": 2, "group_norm": 24},
    "unet": {"attention": 8, "group_norm": 21, "layer_norm": 12, "gelu_mul": 4},
    "llama": {"attention": 2, "rms_norm": 5, "silu_mul": 2},
    "gemma2": {"attention": 2, "rms_norm": 9},
    "bert": {"attention": 2, "layer_norm": 5},
    "clip": {"attention": 4, "layer_norm": 11},
    "t5": {"attention": 2, "rms_norm": 5},
}


def _projects(module: torch.nn.Module) -> bool:
    named = type(module).__name__ in ("Linear", "GELU", "LinearActivation", "BertIntermediate")
    return named and type(module) is not torch.nn.GELU


@pytest.fixture(params=list(tiny.MODELS))
def made(request: pytest.FixtureRequest) -> tiny.Made:
    return tiny.MODELS[request.param]()


@torch.no_grad()
def test_applied_equals_stock_and_after_is_exact(request: pytest.FixtureRequest, made: tiny.Made) -> None:
    model, run = made
    before = run(model)
    attributes = {name: set(module.__dict__) for name, module in model.named_modules()}
    processors = [getattr(m, "processor", None) for m in model.modules()]
    applied = sgl_kernels.apply(model)
    with sgl_kernels.record() as recorder:
        during = run(model)
    applied.remove()
    after = run(model)

    assert torch.allclose(during, before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))
    assert torch.equal(after, before)
    assert {name: set(module.__dict__) for name, module in model.named_modules()} == attributes
    assert [getattr(m, "processor", None) for m in model.modules()] == processors
    assert F.scaled_dot_product_attention.__module__ != "sgl_kernels.integrations.torch_hook"
    calls: Counter[str] = Counter()
    for entry in recorder.report().entries:
        calls[entry.op] += entry.calls
    # Which projections are worth a hook depends on the processor (tests/integrations/test_linears.py).
    projections = [n for n in applied.linears if _projects(model.get_submodule(n))]
    outer = [
        n for n in projections if n.rpartition(".")[0] not in projections
    ]  # one call for it and its layer
    name = request.node.callspec.params["made"]
    again = [
        n for n in outer if name == "dit" and ".norm1.emb." in n and ".0." in n
    ]  # asked once more for the output
    assert calls.pop("linear", 0) == len(outer) + len(again)
    assert dict(calls) == SERVED[name]


@torch.no_grad()
def test_half_precision_is_no_less_accurate_than_stock(made: tiny.Made) -> None:
    model, run = made
    exact = run(_cast(model, torch.float32)).double()
    half = _cast(model, torch.bfloat16)
    inputs = _halved(run)
    try:
        stock = inputs(half)
    except RuntimeError as error:
        pytest.skip(f"stock does not run in bfloat16: {error}")
    with sgl_kernels.apply(half):
        ours = inputs(half)
    assert ours.dtype is stock.dtype
    stock_error = (stock.double() - exact).abs().mean()
    assert (ours.double() - exact).abs().mean() <= 1.25 * stock_error + 1e-3 * exact.abs().mean()


def _cast(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    return copy.deepcopy(model).to(dtype)


def _halved(run: Callable[..., torch.Tensor]) -> Callable[[torch.nn.Module], torch.Tensor]:
    """`run` with floating point inputs in bfloat16, by casting at the model's own door."""

    def cast(value: object) -> object:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.bfloat16()
        return value

    def runs(model: torch.nn.Module) -> torch.Tensor:
        handle = model.register_forward_pre_hook(
            lambda _, args, kwargs: (tuple(map(cast, args)), {k: cast(v) for k, v in kwargs.items()}),
            with_kwargs=True,
        )
        try:
            return run(model)
        finally:
            handle.remove()

    return runs


def test_gradients_equal_stock() -> None:
    model, run = tiny.dit()
    run(model).square().mean().backward()
    want = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    with sgl_kernels.apply(model):
        run(model).square().mean().backward()
    have = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(have) == len(want) > 10
    for g, w in zip(have, want, strict=True):
        assert torch.allclose(g, w, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_autocast_gives_the_dtype_of_stock() -> None:
    model, run = tiny.dit()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want = run(model)
        with sgl_kernels.apply(model):
            have = run(model)
    assert have.dtype is want.dtype
    assert torch.allclose(have.float(), want.float(), atol=0.05 * float(want.abs().max()))


def test_groupnorm_and_silu_of_a_vae_are_one_call() -> None:
    model, _ = tiny.vae()
    with sgl_kernels.apply(model):
        hooks = [m._sgl_kernels for m in model.modules() if hasattr(m, "_sgl_kernels")]
    fused = sum(hook.replacement is group_norm_silu for hook in hooks)
    resnets = sum(type(m).__name__ == "ResnetBlock2D" for m in model.modules())
    assert fused == 2 * resnets + 2  # two in each block, one at the end of the encoder and of the decoder


@torch.no_grad()
def test_generation_with_a_cache_equals_stock() -> None:
    model, _ = tiny.llama()
    options = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    ids, keep = tiny.IDS.flip(1), tiny.PADDING.flip(1)  # left padding, as generation wants it
    want = model.generate(input_ids=ids, attention_mask=keep, **options)
    with sgl_kernels.apply(model), sgl_kernels.record() as recorder:
        have = model.generate(input_ids=ids, attention_mask=keep, **options)
    assert torch.equal(have, want)
    assert sum(e.calls for e in recorder.report().entries if e.op == "attention") == 16
