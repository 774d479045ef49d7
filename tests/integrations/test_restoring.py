"""What was applied is what is given back: whatever was exchanged, copied, compiled, shared or wrapped meanwhile."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sgl_kernels
from sgl_kernels.integrations import applying, remove
from sgl_kernels.integrations.applying import is_applied
from sgl_kernels.integrations.modules import HOOK
from tests.integrations import tiny
from tests.integrations.state import differences, snapshot

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
TORCH_SDPA = torch._C._nn.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def _nothing_left_from_other_tests() -> None:
    gc.collect()


def clean(*models: nn.Module) -> bool:
    """Whether nothing of ours is left: no hook, no implementation, torch's SDPA under its name."""
    return F.scaled_dot_product_attention is TORCH_SDPA and not any(
        HOOK in m.__dict__
        or "forward" in m.__dict__
        or getattr(m.__dict__.get("config"), "_attn_implementation", "") == "sgl_kernels"
        for model in models
        for m in model.modules()
    )


def attention_calls(run: Callable[[], Any]) -> int:
    with torch.no_grad(), sgl_kernels.record() as recorder:
        run()
    return sum(e.calls for e in recorder.report().entries if e.op.startswith("attention"))


def text_encoder() -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=64, hidden_size=12, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=16,
        )
    ).eval()  # fmt: skip


def pipeline() -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=tiny.vae()[0], text_encoder=text_encoder(), tokenizer=None, unet=tiny.unet()[0],
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


@pytest.mark.parametrize("family", list(tiny.MODELS))
def test_every_attribute_of_every_module_is_as_it_was(family: str) -> None:
    model, run = tiny.MODELS[family]()
    with torch.no_grad():
        run(model)  # some models keep what they computed once
    ignore = ()
    before = snapshot(model, ignore)
    for _ in range(2):
        applied = sgl_kernels.apply(model)
        assert differences(before, snapshot(model, ignore))
        with torch.no_grad():
            run(model)
        applied.remove()
        assert differences(before, snapshot(model, ignore)) == []


def taken_out(pipe: Any) -> None:
    pipe.text_encoder = None


def exchanged(pipe: Any) -> None:
    pipe.unet = tiny.unet()[0]


def compiled(pipe: Any) -> None:
    pipe.text_encoder = torch.compile(pipe.text_encoder, backend="eager")
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def compiled_in_place(pipe: Any) -> None:
    pipe.unet.compile(backend="eager")


def copied(pipe: Any) -> None:
    pipe.unet = copy.deepcopy(pipe.unet)
    pipe.vae = pickle.loads(pickle.dumps(pipe.vae))


def moved(pipe: Any) -> None:
    pipe.unet.to(torch.float64)
    pipe.vae.half()


def layers_exchanged(pipe: Any) -> None:
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].norm1 = nn.LayerNorm(16)
    pipe.unet.down_blocks[0].resnets[0].norm1 = nn.GroupNorm(4, 8)
    pipe.unet.conv_act = nn.SiLU()


CHANGES = (taken_out, exchanged, compiled, compiled_in_place, copied, moved, layers_exchanged)


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("how", ["Applied.remove", "remove(pipe)", "with"])
def test_a_pipeline_is_given_back_after(change: Callable[[Any], None], how: str) -> None:
    pipe = pipeline()
    modules = [m for part in (pipe.unet, pipe.vae, pipe.text_encoder) for m in part.modules()]
    applied = sgl_kernels.apply(pipe)
    assert not clean(*modules)
    change(pipe)
    if how == "with":
        with applied:
            pass
    else:
        applied.remove() if how == "Applied.remove" else remove(pipe)
    now = [part for part in (pipe.unet, pipe.vae, pipe.text_encoder) if part is not None]
    parts = [getattr(part, "_orig_mod", part) for part in now]
    assert clean(*modules, *parts)
    before = [snapshot(part) for part in parts]
    applied.remove()
    remove(pipe)
    assert [differences(b, snapshot(p)) for b, p in zip(before, parts, strict=True)] == [[], [], []][
        : len(parts)
    ]


def test_a_component_that_is_given_up_is_not_kept_in_memory() -> None:
    import weakref

    pipe = pipeline()
    applied = sgl_kernels.apply(pipe)
    gone = weakref.ref(pipe.text_encoder)
    pipe.text_encoder = None
    gc.collect()
    assert gone() is None
    applied.remove()
    assert clean(pipe.unet, pipe.vae)


@torch.no_grad()
def test_processors_saved_while_applied_are_the_models_own() -> None:
    model, run = tiny.flux()
    other, _ = tiny.flux()
    want, own = run(model), dict(model.attn_processors)
    applied = sgl_kernels.apply(model)
    saved = model.attn_processors
    assert {n: id(p) for n, p in saved.items()} == {n: id(p) for n, p in own.items()}
    other.set_attn_processor(dict(saved))  # on a model that is not applied they are stock
    assert attention_calls(lambda: run(other)) == 0
    assert attention_calls(lambda: run(model)) == 2
    applied.remove()
    model.set_attn_processor(dict(saved))
    assert attention_calls(lambda: run(model)) == 0 and torch.equal(run(model), want)
    again = pickle.loads(pickle.dumps(saved))
    assert all(p._attention_backend is None for p in again.values())


@pytest.mark.parametrize("first", ["child", "parent"])
def test_a_part_applied_again_answers_to_the_later_one(first: str) -> None:
    pipe = pipeline()
    whole = sgl_kernels.apply(pipe)
    part = sgl_kernels.apply(pipe.unet, linears=False)
    if first == "child":
        part.remove()
        assert clean_but_sdpa(pipe.unet) and is_applied(pipe.vae)
        whole.remove()
    else:
        whole.remove()
        assert is_applied(pipe.unet) and clean_but_sdpa(pipe.vae, pipe.text_encoder)
        part.remove()
    assert clean(pipe.unet, pipe.vae, pipe.text_encoder)


def clean_but_sdpa(*models: nn.Module) -> bool:
    return not any(HOOK in m.__dict__ or "forward" in m.__dict__ for model in models for m in model.modules())


def test_two_pipelines_that_share_parts() -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = pipeline()
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    assert other.unet is pipe.unet
    one, two = sgl_kernels.apply(pipe), sgl_kernels.apply(other)
    one.remove()
    assert is_applied(other)  # the later one still stands
    two.remove()
    assert clean(pipe.unet, pipe.vae, pipe.text_encoder)


@pytest.mark.parametrize("family", ["flux", "dit", "unet", "bert"])
def test_copies_and_their_originals_are_given_back_apart(family: str) -> None:
    model, _ = tiny.MODELS[family]()
    model.applied = sgl_kernels.apply(model)
    copies = (
        [copy.deepcopy(model)]
        if family == "bert"
        else [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    )
    for copied in copies:
        assert is_applied(copied)
        copied.applied.remove()
        assert not is_applied(copied) and clean_but_sdpa(copied) and is_applied(model)
    model.applied.remove()
    assert clean(model, *copies)


def test_a_shallow_copy_does_not_take_the_hook_of_its_original() -> None:
    norm = nn.LayerNorm(8)
    applied = sgl_kernels.apply(norm)
    shallow = copy.copy(norm)
    remove(shallow)
    assert is_applied(norm) and clean_but_sdpa(shallow)
    with sgl_kernels.record() as recorder:
        norm(torch.ones(2, 8))
    assert [e.op for e in recorder.report().entries] == ["layer_norm"]
    applied.remove()
    assert clean(norm)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_half_way_leaves_a_stock_model(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = tiny.unet()
    before = snapshot(model)
    calls = []

    def failing(module: nn.Module) -> Any:
        calls.append(module)
        if len(calls) == 40:
            raise error("half way")
        return stock(module)

    stock = applying.replace.replacement_for
    monkeypatch.setattr(applying.replace, "replacement_for", failing)
    with pytest.raises(error):
        sgl_kernels.apply(model)
    assert differences(before, snapshot(model)) == []


def test_wrappers_of_others_and_removal_in_any_order() -> None:
    model, run = tiny.dit()
    with torch.no_grad():
        want = run(model)
    before = snapshot(model)
    attention = model.transformer_blocks[0].attn1
    applied = sgl_kernels.apply(model)
    ours = attention.forward
    attention.forward = lambda *a, **k: ours(*a, **k)
    applied.remove()
    with torch.no_grad():
        assert torch.equal(run(model), want)
    attention.forward = ours  # the wrapper gives back what it found, which is ours, and no longer in force
    with torch.no_grad():
        assert torch.equal(run(model), want)
    remove(model)
    assert differences(before, snapshot(model)) == []


def test_a_model_compiled_while_applied_is_stock_after(monkeypatch: pytest.MonkeyPatch) -> None:
    model, run = tiny.dit()
    with torch.no_grad():
        want = run(model)
        torch._dynamo.reset()
        applied = sgl_kernels.apply(model)
        whole = torch.compile(model, backend="aot_eager")
        assert attention_calls(lambda: run(whole)) == 2
        applied.remove()
        assert attention_calls(lambda: run(whole)) == 0
        assert torch.equal(run(model), want)
        with sgl_kernels.apply(whole) as inside:  # the wrapper itself: names are those of the model inside
            assert "transformer_blocks.0.attn1" in inside.attention
            assert attention_calls(lambda: run(whole)) == 2
    torch._dynamo.reset()
    assert clean(model)


def test_threads_that_apply_and_remove() -> None:
    model, run = tiny.dit()
    with torch.no_grad():
        want = run(model)
    wrong: list[str] = []

    def work(index: int) -> None:
        with torch.no_grad():
            for _ in range(3):
                with sgl_kernels.apply(model):
                    if not torch.allclose(run(model), want, rtol=1e-4, atol=1e-4):
                        wrong.append(f"thread {index}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and clean(model)


@torch.no_grad()
def test_an_activation_exchanged_while_applied_is_the_one_that_runs() -> None:
    model, run = tiny.vae()
    applied = sgl_kernels.apply(model)
    block = model.encoder.mid_block.resnets[0]
    block.nonlinearity = nn.Mish()
    have = run(model)
    applied.remove()
    assert torch.allclose(have, run(model), rtol=1e-4, atol=1e-5)
    llama, run = tiny.llama()
    applied = sgl_kernels.apply(llama)
    llama.model.layers[0].mlp.act_fn = nn.GELU()
    have = run(llama)
    applied.remove()
    assert torch.allclose(have, run(llama), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_hooks_on_the_activation_behind_a_norm_see_what_they_saw() -> None:
    model, run = tiny.vae()
    block, seen = model.encoder.mid_block.resnets[0], []
    block.nonlinearity.register_forward_hook(lambda _, args, out: seen.append((args[0].clone(), out.clone())))
    run(model)
    with sgl_kernels.apply(model):
        run(model)
    half = len(seen) // 2
    for before, during in zip(seen[:half], seen[half:], strict=True):
        for b, d in zip(before, during, strict=True):
            assert torch.allclose(b, d, rtol=1e-4, atol=1e-5)
