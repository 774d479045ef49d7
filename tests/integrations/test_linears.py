"""Linear layers and activations under `apply`: what is replaced, when it steps aside, and that it can be undone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sgl_kernels
from sgl_kernels.core.device import cpu_arch
from sgl_kernels.integrations import linears
from tests.integrations import tiny

pytest.importorskip("diffusers")
pytest.importorskip("transformers")


def served(recorder: object) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in recorder.report().entries:  # type: ignore[attr-defined]
        found[entry.op] = found.get(entry.op, 0) + entry.calls
    return found


def feed_forward(activation: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    from diffusers.models.attention import FeedForward

    torch.manual_seed(0)
    return FeedForward(24, activation_fn=activation).to(dtype).eval()


X = torch.randn(2, 40, 24, generator=torch.Generator().manual_seed(1))
OPS = {
    "gelu-approximate": "linear", "gelu": "linear", "linear-silu": "linear", "geglu": "gelu_mul",
    "swiglu": "silu_mul",
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", list(OPS))
def test_feed_forward_of_diffusers(activation: str, dtype: torch.dtype) -> None:
    model = feed_forward(activation, dtype)
    x = X.to(dtype)
    exact = copy.deepcopy(model).double()(x.double())
    before = model(x)
    with sgl_kernels.apply(model) as applied, sgl_kernels.record() as recorder:
        during = model(x)
    assert torch.equal(model(x), before)
    error, stock_error = (float((y.double() - exact).norm()) for y in (during, before))
    assert error <= 1.25 * stock_error + 1e-6 * float(exact.norm())
    # A projection is hooked where a backend beats torch's; a gate is hooked everywhere.
    if OPS[activation] != "linear" or cpu_arch() == "avx2" or activation == "gelu-approximate":
        assert served(recorder)[OPS[activation]] >= 1
        assert "net.0" in applied.linears


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_plain_layer_is_hooked_where_a_backend_beats_torch(dtype: torch.dtype) -> None:
    layer = nn.Linear(24, 40).to(dtype)
    applied = sgl_kernels.apply(layer)
    # Without AVX-512 torch is slow in half types; with it in fp32 and fp16, and it has a product for bf16.
    wide = ("avx512", "avx512bf16")
    theirs = {"avx2": (torch.float32,), **dict.fromkeys(wide, (torch.bfloat16,))}
    assert bool(applied.linears) == (cpu_arch() in theirs and dtype not in theirs[cpu_arch()])
    assert linears._worth(layer, "none") == bool(applied.linears)
    applied.remove()
    assert "forward" not in layer.__dict__


@torch.no_grad()
def test_a_hook_on_the_projection_is_called() -> None:
    model = feed_forward("gelu-approximate")
    want, seen = model(X), []
    model.net[0].proj.register_forward_hook(lambda *_: seen.append(1))
    with sgl_kernels.apply(model), sgl_kernels.record() as recorder:
        assert torch.allclose(model(X), want, atol=1e-6)
    assert seen == [1]
    assert all("gelu" not in str(entry.selection.facts) for entry in recorder.report().entries)


@torch.no_grad()
def test_other_dtypes_and_subclasses_of_the_layer_keep_their_own_forward() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    model = feed_forward("gelu-approximate")
    proj = model.net[0].proj
    doubled = Doubled(proj.in_features, proj.out_features)
    doubled.load_state_dict(proj.state_dict())
    model.net[0].proj = doubled
    want = model(X)
    with sgl_kernels.apply(model) as applied, sgl_kernels.record() as recorder:
        assert torch.allclose(model(X), want, atol=1e-6)
    assert "net.0.proj" not in applied.linears
    assert served(recorder).get("linear", 0) <= 1  # the other layer
    layer = nn.Linear(24, 8).bfloat16()
    with sgl_kernels.apply(layer), pytest.raises(RuntimeError, match="dtype"):
        layer(X)  # torch's own error for an input of another dtype


def test_gradients_are_torchs() -> None:
    model = feed_forward("geglu")
    x = X.clone().requires_grad_()
    model(x).square().mean().backward()
    want = [x.grad.clone(), *(p.grad.clone() for p in model.parameters())]
    model.zero_grad()
    x.grad = None
    with sgl_kernels.apply(model):
        model(x).square().mean().backward()
    for have, wanted in zip((x.grad, *(p.grad for p in model.parameters())), want, strict=True):
        assert torch.allclose(have, wanted, rtol=1e-4, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu-approximate", "swiglu"])
def test_compiled_code_keeps_torchs_spelling(activation: str) -> None:
    model = feed_forward(activation)
    want = model(X)
    torch._dynamo.reset()
    with sgl_kernels.apply(model):
        have = torch.compile(model, backend="aot_eager", fullgraph=True)(X)
    torch._dynamo.reset()
    assert torch.allclose(have, want, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_feed_forward_of_transformers_with_another_activation_is_left_alone() -> None:
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

    bert = BertModel(BertConfig(**tiny._SMALL, hidden_act="gelu_new")).eval()
    llama = LlamaModel(LlamaConfig(**tiny._SMALL, hidden_act="gelu")).eval()
    for model in (bert, llama):
        with sgl_kernels.apply(model) as applied:
            assert all(type(model.get_submodule(name)) is nn.Linear for name in applied.linears)


@torch.no_grad()
def test_linears_can_be_left_out() -> None:
    model = feed_forward("geglu")
    with sgl_kernels.apply(model, linears=False) as applied:
        assert applied.linears == () and "linear" not in repr(applied)
