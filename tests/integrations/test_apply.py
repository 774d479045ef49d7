"""`apply` touches one model and nothing else, whatever is shared, copied, wrapped or run at the same time."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sgl_kernels
from sgl_kernels.core.registry import registry
from sgl_kernels.core.selection.implementation import Implementation
from sgl_kernels.integrations import remove
from sgl_kernels.integrations.applying import is_applied
from tests.integrations import tiny

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
TORCH_SDPA = torch._C._nn.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def _nothing_left_from_other_tests() -> None:
    gc.collect()  # an applied model that was dropped without `remove` lets go when it is collected


def calls(recorder: object) -> int:
    return sum(e.calls for e in recorder.report().entries)  # type: ignore[attr-defined]


@torch.no_grad()
@pytest.mark.parametrize("family", ["flux", "dit", "llama", "vae"])
def test_the_model_beside_it_is_not_affected(family: str) -> None:
    model, run = tiny.MODELS[family]()
    other, _ = tiny.MODELS[family]()
    with sgl_kernels.apply(model), sgl_kernels.record() as recorder:
        run(other)
        assert calls(recorder) == 0
        run(model)
        assert calls(recorder) > 0
        assert not is_applied(other)


@torch.no_grad()
def test_a_shared_configuration_object_does_not_leak() -> None:
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    first, second = LlamaModel(config).eval(), LlamaModel(config).eval()
    theirs, layer = first.config, first.layers[0].self_attn
    with sgl_kernels.apply(first):
        assert first.config is theirs and layer.config is not theirs
        assert layer.config._attn_implementation == "sgl_kernels"
        assert "sgl_kernels" not in (c._attn_implementation for c in (config, theirs, second.config))
        theirs.attention_dropout = 0.25  # through the object everybody holds, as ever
        assert layer.config.attention_dropout == 0.25
    assert first.config is theirs and layer.config is theirs


@torch.no_grad()
def test_a_shared_processor_does_not_leak() -> None:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    first, run = tiny.flux()
    second, _ = tiny.flux()
    shared = first.transformer_blocks[0].attn.processor
    second.transformer_blocks[0].attn.set_processor(shared)
    active = _AttentionBackendRegistry._active_backend
    with sgl_kernels.apply(first):
        assert shared._attention_backend is None
        assert _AttentionBackendRegistry._active_backend is active
        with sgl_kernels.record() as recorder:
            run(second)
        assert calls(recorder) == 0
    assert first.transformer_blocks[0].attn.processor is shared


@torch.no_grad()
def test_a_processor_chosen_later_stands() -> None:
    from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

    model, run = tiny.flux()
    want = run(model)
    applied = sgl_kernels.apply(model)
    chosen = FluxAttnProcessor()
    model.transformer_blocks[0].attn.set_processor(chosen)
    assert torch.allclose(run(model), want, rtol=1e-4, atol=1e-4)
    applied.remove()
    assert model.transformer_blocks[0].attn.processor is chosen


@torch.no_grad()
def test_applying_twice_and_removing_twice() -> None:
    model, run = tiny.dit()
    want = run(model)
    sgl_kernels.apply(model)
    applied = sgl_kernels.apply(model)
    assert len(applied.attention) == 2 and len(applied.norms) == 7
    applied.remove()
    applied.remove()
    remove(model)
    assert torch.equal(run(model), want)
    assert not is_applied(model)
    assert F.scaled_dot_product_attention is TORCH_SDPA


@torch.no_grad()
@pytest.mark.parametrize("family", ["flux", "dit", "bert"])
def test_a_deep_copy_is_applied_on_its_own_weights(family: str) -> None:
    model, run = tiny.MODELS[family]()
    sgl_kernels.apply(model)
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        parameter.mul_(0.5)
    stock = copy.deepcopy(copied)
    remove(stock)
    remove(model)
    assert is_applied(copied) and not is_applied(model)
    with sgl_kernels.record() as recorder:
        have = run(copied)
    assert calls(recorder) > 4
    assert torch.allclose(have, run(stock), rtol=1e-4, atol=1e-4)
    remove(copied)
    assert F.scaled_dot_product_attention is TORCH_SDPA


@torch.no_grad()
@pytest.mark.parametrize("family", ["dit", "flux"])
def test_a_pickled_model_comes_back_applied(family: str) -> None:
    model, run = tiny.MODELS[family]()
    want = run(model)
    sgl_kernels.apply(model)
    data = pickle.dumps(model)
    remove(model)
    loaded = pickle.loads(data)
    with sgl_kernels.record() as recorder:
        assert torch.allclose(run(loaded), want, rtol=1e-4, atol=1e-4)
    assert calls(recorder) > 4
    remove(loaded)
    assert torch.equal(run(loaded), want)


def test_a_pickled_model_loads_in_a_process_that_never_applied(tmp_path: Path) -> None:
    model, _ = tiny.flux()
    sgl_kernels.apply(model)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
    remove(model)
    code = "import pickle, sys; print(type(pickle.load(open(sys.argv[1], 'rb'))).__name__)"
    command = [sys.executable, "-c", code, str(tmp_path / "model.pkl")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "FluxTransformer2DModel", done.stderr


@torch.no_grad()
def test_state_dicts_are_those_of_the_stock_model() -> None:
    model, _ = tiny.wan()
    names = list(model.state_dict())
    with sgl_kernels.apply(model):
        assert list(model.state_dict()) == names


@torch.no_grad()
def test_a_wrapper_put_on_later_survives_removal() -> None:
    model, run = tiny.dit()
    want = run(model)
    applied = sgl_kernels.apply(model)
    block = model.transformer_blocks[0]
    inner, seen = block.attn1.forward, []

    def wrapper(*args: object, **kwargs: object) -> object:
        seen.append(1)
        return inner(*args, **kwargs)

    block.attn1.forward = wrapper
    applied.remove()
    assert torch.equal(run(model), want) and seen == [1]
    assert block.attn1.forward is wrapper


@torch.no_grad()
def test_a_forward_that_was_replaced_before_is_called() -> None:
    model, run = tiny.dit()
    attention, norm = model.transformer_blocks[0].attn1, model.transformer_blocks[0].norm3
    seen = []
    for name, module in (("attention", attention), ("norm", norm)):
        stock = type(module).forward

        def offloading(
            *args: object, _name: str = name, _m: nn.Module = module, _f: object = stock, **kw: object
        ) -> object:
            seen.append(_name)
            return _f(_m, *args, **kw)  # type: ignore[operator]

        module.forward = offloading
    with sgl_kernels.apply(model) as applied:
        run(model)
        assert seen == ["attention", "norm"]
        assert "transformer_blocks.0.norm3" not in applied.norms
        assert "transformer_blocks.0.attn1" in applied.attention
    assert attention.forward.__name__ == "offloading"


@torch.no_grad()
def test_hooks_on_an_inner_norm_still_run() -> None:
    model, run = tiny.dit()
    want = run(model)
    seen = []
    model.transformer_blocks[0].norm1.norm.register_forward_hook(lambda *_: seen.append(1))
    with sgl_kernels.apply(model):
        assert torch.allclose(run(model), want, rtol=1e-4, atol=1e-4)
    assert seen == [1]


@torch.no_grad()
def test_threads_with_and_without_the_applied_model() -> None:
    model, run = tiny.dit()
    stock, _ = tiny.dit()
    want = run(stock)
    sgl_kernels.apply(model)
    wrong: list[str] = []

    def work(index: int) -> None:
        with torch.no_grad(), sgl_kernels.record() as recorder:
            for _ in range(4):
                out = run(model if index % 2 else stock)
            if not torch.allclose(out, want, rtol=1e-4, atol=1e-4):
                wrong.append(f"thread {index}: output")
            if (calls(recorder) > 0) != bool(index % 2):
                wrong.append(f"thread {index}: {calls(recorder)} calls")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    remove(model)
    assert wrong == []


TWINS = ("twin_a", "twin_b")


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two more names for the torch floor, to see who was chosen where."""
    found = registry.implementations

    def implementations(op: str) -> tuple[Implementation, ...]:
        floor = next(i for i in found(op) if i.backend == "torch")
        return (*found(op), *(dataclasses.replace(floor, backend=name, rank=-5) for name in TWINS))

    names = (*registry.backends(), *TWINS)
    monkeypatch.setattr(registry, "implementations", implementations)
    monkeypatch.setattr(registry, "backends", lambda: names)
    monkeypatch.setattr(registry, "_loaded", {}, raising=False)


@torch.no_grad()
def test_rules_see_role_and_layer(twins: None) -> None:
    from sgl_kernels.core.selection.policy import Rule

    model, run = tiny.wan()
    parent = sgl_kernels.core.dispatch.current()
    rules = (
        Rule("attention", ("twin_a",), role="cross"),
        Rule("attention", ("twin_b",), layer="blocks.1.attn1"),
    )
    dispatcher = parent.derive(parent.settings.replace(rules=rules))
    sgl_kernels.apply(model)
    with sgl_kernels.core.dispatch.activate(dispatcher), sgl_kernels.record() as recorder:
        run(model)
    remove(model)
    used = {e.backend: e.calls for e in recorder.report().entries if e.op == "attention"}
    assert used.pop("twin_a") == 2 and used.pop("twin_b") == 1
    assert sum(used.values()) == 1


@torch.no_grad()
def test_the_backend_of_one_model(twins: None) -> None:
    model, run = tiny.dit()
    other, _ = tiny.dit()
    sgl_kernels.apply(model, backend="twin_a", linears=False)
    sgl_kernels.apply(other, backend="twin_b", linears=False)
    with sgl_kernels.record() as recorder:
        run(model)
        run(other)
    remove(model)
    remove(other)
    by = {b: sum(e.calls for e in recorder.report().entries if e.backend == b) for b in ("twin_a", "twin_b")}
    assert by == {"twin_a": 7, "twin_b": 7}


def test_what_is_not_a_model_and_names_that_do_not_exist() -> None:
    model, _ = tiny.dit()
    with pytest.raises(TypeError, match=r"model is dict, expected a torch.nn.Module or a diffusers pipeline"):
        sgl_kernels.apply({})
    with pytest.raises(sgl_kernels.ConfigError, match="flash_attn3x"):
        sgl_kernels.apply(model, backend="flash_attn3x")
    assert not is_applied(model)


@torch.no_grad()
def test_a_pipeline_is_applied_in_all_its_parts() -> None:
    from diffusers import DiTPipeline, FlowMatchEulerDiscreteScheduler

    transformer, _ = tiny.dit()
    vae, _ = tiny.vae()
    pipe = DiTPipeline(transformer, vae, FlowMatchEulerDiscreteScheduler())
    with sgl_kernels.apply(pipe) as applied:
        assert is_applied(transformer) and is_applied(vae)
        assert "transformer.transformer_blocks.0.attn1" in applied.attention
        assert "vae.decoder.conv_norm_out" in applied.norms
    assert not is_applied(pipe)


@torch.no_grad()
def test_any_torch_module() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(x).unflatten(-1, (2, 8)).transpose(1, 2)
            return F.scaled_dot_product_attention(y, y, y, is_causal=True)

    model, x = Block(), torch.randn(2, 5, 16)
    want = model(x)
    with sgl_kernels.apply(model) as applied, sgl_kernels.record() as recorder:
        assert torch.allclose(model(x), want, atol=1e-5)
    assert applied.attention == ("",) and applied.norms == ("norm",)
    assert sorted(e.op for e in recorder.report().entries) == ["attention", "layer_norm"]


@torch.no_grad()
def test_a_choice_that_compiled_code_cannot_see_is_said_once(
    twins: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgl_kernels.core.log._seen", set())
    model, run = tiny.dit()
    want = run(model)
    torch._dynamo.reset()
    with sgl_kernels.apply(model, backend="twin_a"):
        have = run(torch.compile(model, backend="aot_eager", fullgraph=True))
    torch._dynamo.reset()
    assert torch.allclose(have, want, rtol=1e-4, atol=1e-4)
    said = [r.getMessage() for r in caplog.records if "compiled code does not see" in r.getMessage()]
    assert len(said) == 1 and "apply(backend='twin_a')" in said[0]
