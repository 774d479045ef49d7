"""The name "sgl_kernels" in transformers: masks, flags, and arguments that must not be dropped."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import sgl_kernels
from tests.integrations import tiny

pytest.importorskip("transformers")
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from sgl_kernels.integrations import transformers as integration


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    with sgl_kernels.install("transformers"):
        yield


def module(training: bool = False, **attributes: object) -> nn.Module:
    made = nn.Identity().train(training)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def qkv(sq: int = 5, sk: int = 5, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((2, 4, sq, 8), (2, kv_heads, sk, 8), (2, kv_heads, sk, 8))
    return tuple(torch.randn(s, generator=g) for s in shapes)  # type: ignore[return-value]


def call(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, training: bool = False, **options: object
) -> Tensor:
    out, weights = integration.attention_interface(
        module(training, is_causal=False), q, k, v, mask, **options
    )
    assert weights is None
    return out


def oracle(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor | None = None,
    softcap: float = 0.0,
    bias: Tensor | None = None,
) -> Tensor:
    scores = q.double() @ k.double().repeat_interleave(q.shape[1] // k.shape[1], 1).mT * q.shape[-1] ** -0.5
    scores = scores if not softcap else softcap * torch.tanh(scores / softcap)
    scores = scores if bias is None else scores + bias
    scores = scores if keep is None else scores.masked_fill(~keep, float("-inf"))
    out = scores.softmax(-1) @ v.double().repeat_interleave(q.shape[1] // v.shape[1], 1)
    return out.transpose(1, 2).float()


def close(have: Tensor, want: Tensor) -> bool:
    return torch.allclose(have, want, atol=1e-5)


def test_both_interfaces_carry_the_name() -> None:
    assert "sgl_kernels" in AttentionInterface() and "sgl_kernels" in AttentionMaskInterface()
    for _ in range(2):
        sgl_kernels.uninstall("transformers")
    assert "sgl_kernels" not in AttentionInterface() and "sgl_kernels" not in AttentionMaskInterface()


@torch.no_grad()
@pytest.mark.parametrize("family", list(tiny.TRANSFORMERS))
def test_set_attn_implementation_equals_eager(family: str) -> None:
    model, run = tiny.TRANSFORMERS[family]()
    model.set_attn_implementation("eager")
    want = run(model)
    model.set_attn_implementation("sgl_kernels")
    with sgl_kernels.record() as recorder:
        assert torch.allclose(run(model), want, rtol=1e-4, atol=2e-5)
    assert {e.op for e in recorder.report().entries} == {"attention"}
    model.set_attn_implementation("sdpa" if family != "gemma2" else "eager")
    with sgl_kernels.record() as recorder:
        run(model)
    assert recorder.report().entries == ()


def test_grouped_heads_scaling_and_mask() -> None:
    q, k, v = qkv()
    keep = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])[:, None, None]
    assert close(call(q, k, v, keep), oracle(q, k, v, keep))
    assert close(call(q, k, v, scaling=0.5), oracle(q * 0.5 * 8**0.5, k, v))


@pytest.mark.parametrize("heads", [(2, 4), (4, 1), (1, 2)])
@pytest.mark.parametrize("batches", [(2, 2, 2), (1, 2, 2), (2, 1, 1), (2, 1, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_heads_and_batches_that_differ(
    heads: tuple[int, int], batches: tuple[int, ...], masked: bool
) -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(batch, h, 5, 8, generator=g) for batch, h in zip(batches, (4, *heads), strict=True)
    )
    keep = torch.rand(2, 1, 5, 5, generator=g) > 0.3
    keep |= torch.eye(5, dtype=torch.bool)
    wide = torch.nn.functional.scaled_dot_product_attention(
        *(t.double() for t in (q, k, v)), attn_mask=keep if masked else None, enable_gqa=True
    )
    torch.testing.assert_close(call(q, k, v, keep if masked else None), wide.transpose(1, 2).float())


def test_causal_comes_from_the_argument_else_the_module_else_true() -> None:
    q, k, v = qkv()
    tril = torch.ones(5, 5, dtype=torch.bool).tril()
    for mod, options, causal in (
        (module(is_causal=False), {}, False),
        (module(is_causal=False), {"is_causal": True}, True),
        (module(is_causal=True), {}, True),
        (module(is_causal=True), {"is_causal": False}, False),
        (module(), {}, True),
    ):
        have = integration.attention_interface(mod, q, k, v, None, **options)[0]
        assert close(have, oracle(q, k, v, tril if causal else None))
    full = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    assert close(integration.attention_interface(module(is_causal=True), q, k, v, full)[0], oracle(q, k, v))


def test_an_empty_static_cache_and_a_single_query() -> None:
    q, k, v = qkv(3, 7)
    tril = torch.ones(3, 3, dtype=torch.bool).tril()
    assert close(call(q, k, v, is_causal=True), oracle(q, k[:, :, :3], v[:, :, :3], tril))
    q, k, v = qkv(1, 7)
    assert close(call(q, k, v, is_causal=True), oracle(q, k, v))


def test_softcap_sliding_window_and_position_bias() -> None:
    q, k, v = qkv()
    i, j = torch.arange(5)[:, None], torch.arange(5)
    near = (j <= i) & (j > i - 3)
    assert close(call(q, k, v, softcap=0.7), oracle(q, k, v, softcap=0.7))
    assert close(call(q, k, v, is_causal=True, sliding_window=3), oracle(q, k, v, near))
    assert close(call(q, k, v, sliding_window=5), oracle(q, k, v))
    bias = torch.randn(1, 4, 5, 5)
    assert close(call(q, k, v, position_bias=bias), oracle(q, k, v, bias=bias))
    assert close(call(q, k, v, near[None, None], position_bias=bias), oracle(q, k, v, near, bias=bias))
    assert close(call(q, k, v, position_bias=bias, is_causal=True), oracle(q, k, v, j <= i, bias=bias))
    with pytest.raises(ValueError, match="sliding_window=3 over 5 keys without a mask"):
        call(q, k, v, sliding_window=3)


@pytest.mark.parametrize("name", ["s_aux", "block_indices", "cache", "alibi"])
def test_arguments_that_change_the_result_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"passes {name}=.*HARMLESS\.add\('{name}'\)"):
        call(*qkv(), **{name: torch.ones(4)})
    call(*qkv(), **{name: None})


def test_packed_lengths_need_a_mask() -> None:
    lengths = torch.tensor([0, 2, 5], dtype=torch.int32)
    with pytest.raises(ValueError, match="cu_seq_lens_q packs several sequences"):
        call(*qkv(), cu_seq_lens_q=lengths)
    call(*qkv(), cu_seq_lens_q=lengths[[0, 2]])


def test_weights_are_refused_and_dropout_goes_to_torch() -> None:
    with pytest.raises(ValueError, match="output_attentions=True asks for the weights"):
        call(*qkv(), output_attentions=True)
    with sgl_kernels.record() as recorder:
        call(*qkv(), dropout=0.5, training=True)
    assert recorder.report().entries == ()
    with pytest.raises(ValueError, match=r"dropout 0\.5 together with softcap"):
        call(*qkv(), dropout=0.5, softcap=3.0, training=True)
    with sgl_kernels.record() as recorder:
        call(*qkv(), dropout=0.5)  # not training: no dropout
    assert len(recorder.report().entries) == 1


@torch.no_grad()
def test_packed_sequences_equal_the_same_sequences_apart() -> None:
    model, _ = tiny.llama()
    model.set_attn_implementation("sgl_kernels")
    first, second = torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9, 10, 11]])
    packed = model(
        input_ids=torch.cat([first, second], 1),
        position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3]]),
        use_cache=False,
    ).logits
    apart = torch.cat([model(input_ids=x, use_cache=False).logits for x in (first, second)], 1)
    assert torch.allclose(packed, apart, atol=1e-5)


@torch.no_grad()
def test_an_implementation_chosen_later_stands() -> None:
    model, run = tiny.llama()
    applied = sgl_kernels.apply(model)
    model.set_attn_implementation("eager")
    run(model)
    applied.remove()
    assert model.config._attn_implementation == "eager"


def test_norms_are_recognised_by_what_they_compute() -> None:
    from sgl_kernels.integrations.norms import rms_form

    def made(offset: float, group: int = 1) -> nn.Module:
        class OddRMSNorm(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight, self.eps = nn.Parameter(torch.linspace(0.5, 1.5, 8)), 1e-6

            def forward(self, x: Tensor) -> Tensor:
                y = x.unflatten(-1, (group, -1))
                y = (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)).flatten(-2)
                return y * (offset + self.weight)

        return OddRMSNorm()

    names = [getattr(rms_form(m), "__name__", None) for m in (made(0.0), made(1.0), made(0.0, 2), made(0.5))]
    assert names == ["transformers_rms_norm", "transformers_rms_norm_offset", None, None]
    assert rms_form(copy.deepcopy(made(0.0)).to(torch.bfloat16)).__name__ == "transformers_rms_norm"
    assert rms_form(made(0.0).to("meta")) is None
    assert rms_form(SimpleNamespace(weight=None)) is None  # type: ignore[arg-type]


@torch.no_grad()
def test_an_applied_model_compiles_in_one_graph() -> None:
    model, run = tiny.bert()
    want = run(model)
    torch._dynamo.reset()
    with sgl_kernels.apply(model), sgl_kernels.record() as recorder:
        have = run(torch.compile(model, backend="aot_eager", fullgraph=True))
    torch._dynamo.reset()
    assert torch.allclose(have, want, rtol=1e-4, atol=1e-4)
    assert {e.op for e in recorder.report().entries} == {"attention", "layer_norm"}


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
def test_packed_lengths_are_served_where_all_of_them_are_given(causal: bool) -> None:
    q, k, v = (t[:1] for t in qkv())
    total = q.shape[2]
    ends = torch.tensor([0, 2, total], dtype=torch.int32)
    have = call(
        q,
        k,
        v,
        is_causal=causal,
        cu_seq_lens_q=ends,
        cu_seq_lens_k=ends,
        max_length_q=total,
        max_length_k=total,
    )
    parts = [call(*(t[:, :, a:b] for t in (q, k, v)), is_causal=causal) for a, b in ((0, 2), (2, total))]
    assert torch.allclose(have, torch.cat(parts, 1), atol=1e-6)
