"""The name "sgl_kernels" in diffusers' dispatcher, and what is meant by each argument it passes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from packaging.version import Version
from torch import Tensor

import sgl_kernels
from tests.integrations import tiny

pytest.importorskip("diffusers")
from diffusers.models import attention_dispatch as theirs
from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

from sgl_kernels.integrations import diffusers as integration

B, S, H, D = 2, 6, 4, 8


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    active = theirs._AttentionBackendRegistry._active_backend
    with sgl_kernels.install("diffusers"):
        yield
    theirs._AttentionBackendRegistry.set_active_backend(active)


def qkv(
    sq: int = S, sk: int = S, heads: int = H, kv_heads: int = H, batch: int = B
) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((batch, sq, heads, D), (batch, sk, kv_heads, D), (batch, sk, kv_heads, D))
    return tuple(torch.randn(s, generator=g) for s in shapes)  # type: ignore[return-value]


def oracle(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: object) -> Tensor:
    q, k, v = (t.transpose(1, 2).double() for t in (q, k, v))
    mask = mask.double() if mask is not None and mask.is_floating_point() else mask
    return (
        torch._C._nn.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options).transpose(1, 2).float()
    )


def dispatched(*args: Tensor, **options: object) -> Tensor:
    return dispatch_attention_fn(*args, backend="sgl_kernels", **options)


KEEP = torch.ones(B, S, dtype=torch.bool)
KEEP[1, 4:] = False
CAUSAL = torch.ones(S, S, dtype=torch.bool).tril()
PER_BATCH = torch.stack([CAUSAL, CAUSAL.T])
MASKS = {  # what is passed -> what it means, as a 4-dimensional mask
    "(Sk,)": (KEEP[1], KEEP[1][None, None, None]),
    "(B, Sk)": (KEEP, KEEP[:, None, None]),
    "(B, Sk) float": (torch.where(KEEP, 0.0, float("-inf")), KEEP[:, None, None]),
    "(1, Sk)": (KEEP[1:], KEEP[1][None, None, None]),
    "(Sq, Sk)": (CAUSAL, CAUSAL[None, None]),
    "(B, Sq, Sk)": (PER_BATCH, PER_BATCH[:, None]),
    "(B, 1, Sk)": (KEEP[:, None], KEEP[:, None, None]),
    "(H, Sq, Sk)": (torch.stack([CAUSAL] * 3 + [CAUSAL.T]), torch.stack([CAUSAL] * 3 + [CAUSAL.T])[None]),
    "(B, 1, 1, Sk)": (KEEP[:, None, None], KEEP[:, None, None]),
    "(B, H, Sq, Sk)": (PER_BATCH[:, None].expand(B, H, S, S), PER_BATCH[:, None]),
    "(B, H, Sq, Sk) float": (torch.linspace(-2, 2, B * H * S * S).view(B, H, S, S),) * 2,
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_one_to_four_dimensions(name: str) -> None:
    given, meant = MASKS[name]
    have = dispatched(*qkv(), attn_mask=given)
    assert torch.allclose(have, oracle(*qkv(), meant), atol=1e-5)


@pytest.mark.parametrize(
    "shape, sizes, message",
    [
        ((6, 6), {"batch": 6}, "(batch, keys) and (queries, keys)"),
        ((2, 6, 6), {"heads": 2, "kv_heads": 2}, "(batch, queries, keys) and (heads, queries, keys)"),
        ((3, 6), {}, "expected (Sk,), (B, Sk), (Sq, Sk), (B, Sq, Sk)"),
        ((5, 6, 6), {}, "has shape [5, 6, 6]"),
    ],
)
def test_masks_with_two_readings_or_none_are_refused(
    shape: tuple[int, ...], sizes: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        dispatched(*qkv(**sizes), attn_mask=torch.ones(shape, dtype=torch.bool))
    assert message in str(error.value)


def test_causal_is_top_left_as_in_torch() -> None:
    q, k, v = qkv(3, 6)
    want = oracle(q, k, v, is_causal=True)
    assert torch.allclose(dispatched(q, k, v, is_causal=True), want, atol=1e-5)


def test_scale_and_grouped_heads() -> None:
    q, k, v = qkv(kv_heads=2)
    want = oracle(q, k, v, scale=0.7, enable_gqa=True)
    assert torch.allclose(dispatched(q, k, v, scale=0.7, enable_gqa=True), want, atol=1e-5)
    with pytest.raises(ValueError, match="enable_gqa=True"):
        dispatched(q, k, v)


def test_lse_is_laid_out_as_diffusers_wants() -> None:
    q, k, v = qkv(sk=9)
    out, lse = dispatched(q, k, v, attention_kwargs={"return_lse": True})
    scores = torch.einsum("bqhd,bkhd->bqhk", q, k) * D**-0.5
    assert lse.shape == (B, S, H)
    assert torch.allclose(lse, scores.logsumexp(-1), atol=1e-5)
    assert torch.allclose(out, oracle(q, k, v), atol=1e-5)


def test_dropout_goes_to_torch() -> None:
    with sgl_kernels.record() as recorder:
        out = dispatched(*qkv(), dropout_p=0.5)
    assert out.shape == (B, S, H, D) and recorder.report().entries == ()


def test_no_argument_of_the_dispatcher_is_dropped() -> None:
    member = integration.member()
    declared = theirs._AttentionBackendRegistry._supported_arg_names[member]
    native = theirs._AttentionBackendRegistry._supported_arg_names[theirs.AttentionBackendName.NATIVE]
    assert native <= declared


@torch.no_grad()
def test_every_way_of_choosing_the_name() -> None:
    model, run = tiny.flux()
    want = run(model)
    with attention_backend("sgl_kernels"), sgl_kernels.record() as recorder:
        assert torch.allclose(run(model), want, atol=1e-5)
    assert sum(e.calls for e in recorder.report().entries) == 2
    model.set_attention_backend("sgl_kernels")
    with sgl_kernels.record() as recorder:
        assert torch.allclose(run(model), want, atol=1e-5)
    assert sum(e.calls for e in recorder.report().entries) == 2
    sgl_kernels.uninstall("diffusers")  # what was set to it goes on with diffusers' own
    with sgl_kernels.record() as recorder:
        assert torch.equal(run(model), want)
    assert recorder.report().entries == ()


def test_uninstall_removes_the_name_and_install_brings_it_back() -> None:
    members = list(theirs.AttentionBackendName)
    for _ in range(2):
        sgl_kernels.uninstall("diffusers")
    assert "sgl_kernels" not in {m.value for m in theirs.AttentionBackendName}
    with pytest.raises(ValueError), attention_backend("sgl_kernels"):
        pass
    for _ in range(2):
        sgl_kernels.install("diffusers")
    assert list(theirs.AttentionBackendName) == members


def test_an_unknown_version_is_refused_and_apply_still_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    sgl_kernels.uninstall("diffusers")
    monkeypatch.setattr(integration, "installed_version", lambda name: Version("9.9"))
    with pytest.raises(sgl_kernels.ConfigError, match=r"diffusers 9\.9 is installed.*install\('torch'\)"):
        sgl_kernels.install("diffusers")
    model, run = tiny.flux()
    with torch.no_grad():
        want = run(model)
        with sgl_kernels.apply(model), sgl_kernels.record() as recorder:
            assert torch.allclose(run(model), want, rtol=1e-4, atol=1e-4)
    assert sum(e.calls for e in recorder.report().entries if e.op == "attention") == 2
    monkeypatch.undo()


@torch.no_grad()
@pytest.mark.parametrize("family", ["flux", "dit", "wan", "vae"])
def test_an_applied_model_compiles_in_one_graph(family: str) -> None:
    model, run = tiny.DIFFUSERS[family]()
    want = run(model)
    torch._dynamo.reset()
    with sgl_kernels.apply(model), sgl_kernels.record() as recorder:
        have = run(torch.compile(model, backend="aot_eager", fullgraph=True))
    assert torch.allclose(have, want, rtol=1e-4, atol=1e-4)
    served = {e.op for e in recorder.report().entries}
    assert "attention" in served and len(served) >= 2
    torch._dynamo.reset()
    assert torch.equal(run(torch.compile(model, backend="eager")), want)
    torch._dynamo.reset()


def test_ring_attention_gets_the_lse_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def template(*args: object, forward_op: object, backward_op: object, _parallel_config: object) -> Tensor:
        q, k, v = args[:3]
        out, lse = forward_op(None, q, k, v, None, 0.0, False, None, False, True, _save_ctx=True)  # type: ignore[operator]
        seen["lse"] = lse.shape
        with pytest.raises(NotImplementedError, match="inference"):
            backward_op(None, out)  # type: ignore[operator]
        return out

    monkeypatch.setattr(theirs, "_templated_context_parallel_attention", template)
    out = dispatched(*qkv(), parallel_config=object())
    assert torch.allclose(out, oracle(*qkv()), atol=1e-5) and seen["lse"] == (B, S, H)
