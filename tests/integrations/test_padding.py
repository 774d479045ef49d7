"""apply(model, padding="skip"): the same states for real tokens, zeros for padding, and stock where it cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgl_kernels
from tests.integrations import tiny

pytest.importorskip("transformers")


def encoder(family: str = "Bert", **more: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{family}Config")(**{**tiny._SMALL, **more})
    return tiny.randomised(getattr(transformers, f"{family}Model")(config))


def ids(*lengths: int, width: int = 11) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(3, 32, (len(lengths), width), generator=torch.Generator().manual_seed(1))
    keep = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    return tokens * keep, keep.long()


def varlen_calls(recorder: Any) -> int:
    return sum(e.calls for e in recorder.report().entries if e.op == "attention_varlen")


@torch.no_grad()
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("family", ["Bert", "Roberta", "XLMRoberta"])
def test_real_tokens_as_stock_and_padding_is_zero(family: str, left: bool) -> None:
    model = encoder(family)
    tokens, keep = ids(11, 4, 1, 7)
    if left:
        tokens, keep = tokens.flip(1), keep.flip(1)
    before = model(input_ids=tokens, attention_mask=keep)
    with sgl_kernels.apply(model, padding="skip") as applied, sgl_kernels.record() as recorder:
        during = model(input_ids=tokens, attention_mask=keep)
    after = model(input_ids=tokens, attention_mask=keep)
    assert applied.packed == ("encoder",) and "padding skipped" in repr(applied)
    assert varlen_calls(recorder) == 2
    real = keep.bool()
    assert torch.allclose(
        during.last_hidden_state[real], before.last_hidden_state[real], rtol=1e-4, atol=1e-5
    )
    assert not during.last_hidden_state[~real].any()
    if not left:  # the pooler reads the first token
        assert torch.allclose(during.pooler_output, before.pooler_output, rtol=1e-4, atol=1e-5)
    assert torch.equal(after.last_hidden_state, before.last_hidden_state)


@torch.no_grad()
def test_no_padding_and_masks_of_other_kinds_go_the_usual_way() -> None:
    model = encoder()
    tokens, keep = ids(11, 11)
    causal = torch.ones(11, 11, dtype=torch.bool).tril()[None, None].expand(2, 1, 11, 11)
    for mask in (keep, None, causal):
        want = model(input_ids=tokens, attention_mask=mask).last_hidden_state
        with sgl_kernels.apply(model, padding="skip"), sgl_kernels.record() as recorder:
            have = model(input_ids=tokens, attention_mask=mask).last_hidden_state
        assert varlen_calls(recorder) == 0
        assert torch.allclose(have, want, rtol=1e-4, atol=1e-5)


def test_whoever_looks_inside_sees_whole_tensors() -> None:
    model = encoder()
    tokens, keep = ids(11, 4)
    seen: list[torch.Size] = []
    with torch.no_grad(), sgl_kernels.apply(model, padding="skip"), sgl_kernels.record() as recorder:
        states = model(input_ids=tokens, attention_mask=keep, output_hidden_states=True).hidden_states
        assert [s.shape for s in states] == [torch.Size((2, 11, 32))] * 3
        handle = model.encoder.layer[0].register_forward_hook(lambda _m, _a, out: seen.append(out.shape))
        model(input_ids=tokens, attention_mask=keep)
        handle.remove()
    assert seen == [torch.Size((2, 11, 32))] and varlen_calls(recorder) == 0


def test_gradients_see_the_whole_batch() -> None:
    model = encoder()
    tokens, keep = ids(11, 4)
    with sgl_kernels.apply(model, padding="skip"), sgl_kernels.record() as recorder:
        model(input_ids=tokens, attention_mask=keep).last_hidden_state.sum().backward()
    assert varlen_calls(recorder) == 0
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_what_cannot_be_skipped_is_an_error() -> None:
    llama, _ = tiny.llama()
    with pytest.raises(ValueError, match=r"padding='skip' needs .* BertEncoder"):
        sgl_kernels.apply(llama, padding="skip")
    with pytest.raises(ValueError, match="padding is 'drop', expected 'compute' or 'skip'"):
        sgl_kernels.apply(llama, padding="drop")
    with pytest.raises(ValueError, match="needs attention=True"):
        sgl_kernels.apply(encoder(), padding="skip", attention=False)
