"""`apply` and our name on models of transformers: never another model, at any depth, and everything given back."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgl_kernels
from sgl_kernels.integrations import remove
from tests.integrations import tiny

pytest.importorskip("transformers")
import transformers
from transformers import AttentionInterface

from sgl_kernels.integrations import transformers as library
from sgl_kernels.integrations.modules import found
from sgl_kernels.integrations.transformers_contract import contract_of, is_plain, takes_name


@pytest.fixture(autouse=True)
def _nothing_left_from_other_tests() -> None:
    gc.collect()  # an applied model that was dropped without `remove` lets go when it is collected


def served(recorder: Any) -> int:
    return sum(e.calls for e in recorder.report().entries if e.op.startswith("attention"))


# --- attention of another kind ------------------------------------------------------------------------


def plain(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **more: Any
) -> Any:
    weights = query @ key.mT * scaling
    weights = weights if attention_mask is None else weights + attention_mask
    return (weights.softmax(-1) @ value).transpose(1, 2), weights


def with_sink(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **more: Any
) -> Any:
    weights = query @ key.mT * scaling
    weights = weights if attention_mask is None else weights + attention_mask
    weights = torch.cat([weights, torch.zeros_like(weights[..., :1])], -1).softmax(-1)[..., :-1]
    return (weights @ value).transpose(1, 2), weights


def mask_before_scale(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **more: Any
) -> Any:
    weights = query @ key.mT
    weights = (weights if attention_mask is None else weights + attention_mask) * scaling
    return (weights.softmax(-1) @ value).transpose(1, 2), weights


def own_scale(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **more: Any
) -> Any:
    return plain(module, query, key, value, attention_mask, module.head_dim**-0.5)


def ignores_mask(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **more: Any
) -> Any:
    return plain(module, query, key, value, None, scaling)


def causal_by_itself(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **more: Any
) -> Any:
    hidden = torch.ones(query.shape[2], key.shape[2]).tril() == 0
    return plain(module, query, key, value, torch.zeros(1).double().masked_fill(hidden, -1e9), scaling)


def reads_a_parameter(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **more: Any
) -> Any:
    return plain(module, query, key, value, attention_mask, scaling * getattr(module, "gain", 1.0))


def raises(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **more: Any
) -> Any:
    raise LookupError("no")


def test_the_probe_tells_plain_attention_from_everything_else() -> None:
    others = (
        with_sink,
        mask_before_scale,
        own_scale,
        ignores_mask,
        causal_by_itself,
        reads_a_parameter,
        raises,
    )
    assert is_plain(plain)
    assert [f.__name__ for f in others if is_plain(f)] == []
    assert not is_plain(None)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("gemma2.modeling_gemma2", True),
        ("bert.modeling_bert", True),
        ("t5.modeling_t5", True),
        ("gpt_oss.modeling_gpt_oss", False),
        ("granite_swa.modeling_granite_swa", False),
    ],
)
def test_eager_functions_of_transformers(path: str, expected: bool) -> None:
    module = pytest.importorskip(f"transformers.models.{path}")
    assert is_plain(module.eager_attention_forward) is expected


def gpt_oss() -> tuple[nn.Module, Any]:
    config = transformers.GptOssConfig(
        **tiny._SMALL, num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=3,
        layer_types=["full_attention", "sliding_attention"],
    )  # fmt: skip
    return tiny.randomised(transformers.GptOssForCausalLM(config)), lambda m: m(input_ids=tiny.IDS).logits


@torch.no_grad()
def test_sinks_are_left_to_stock_and_said() -> None:
    model, run = gpt_oss()
    want = run(model)
    with sgl_kernels.apply(model, norms=False, linears=False) as applied, sgl_kernels.record() as recorder:
        assert torch.equal(run(model), want)
    assert served(recorder) == 0 and len(applied.left) == 2 and not applied.attention
    assert "2 attention layers left to stock" in repr(applied)
    with sgl_kernels.install("transformers"), sgl_kernels.record() as recorder:
        model.set_attn_implementation("sgl_kernels")
        assert torch.equal(run(model), want) and served(recorder) == 0
        model.set_attn_implementation("eager")


@torch.no_grad()
@pytest.mark.parametrize("way", ["apply", "name"])
def test_without_a_mask_a_class_not_certified_hides_nothing(way: str) -> None:
    """Its code has no causal flag; the default of SDPA would make its encoder causal."""
    config = transformers.NllbMoeConfig(
        vocab_size=32, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_experts=2, max_position_embeddings=64,
    )  # fmt: skip
    model = tiny.randomised(transformers.NllbMoeModel(config))
    inputs = dict(input_ids=tiny.IDS, decoder_input_ids=tiny.IDS)
    want = model(**inputs).last_hidden_state
    if way == "apply":
        with sgl_kernels.apply(model), sgl_kernels.record() as recorder:
            have = model(**inputs).last_hidden_state
    else:
        with sgl_kernels.install("transformers"), sgl_kernels.record() as recorder:
            model.set_attn_implementation("sgl_kernels")
            have = model(**inputs).last_hidden_state
    assert served(recorder) == 3
    assert torch.allclose(have, want, rtol=1e-4, atol=1e-4)


def test_classes_that_ask_for_sdpa_by_name_keep_it() -> None:
    from transformers.models.git.modeling_git import GitModel
    from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import GlmMoeDsaAttention, GlmMoeDsaModel
    from transformers.models.llama.modeling_llama import LlamaModel

    assert takes_name(LlamaModel) and not takes_name(GlmMoeDsaModel) and not takes_name(GitModel)
    assert contract_of(GlmMoeDsaAttention).branches and "indices" in contract_of(GlmMoeDsaAttention).odd
    vision = dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=8,
        patch_size=4,
    )
    with sgl_kernels.install("transformers"):  # its table of classes has no entry of our name
        model = GitModel._from_config(
            transformers.GitConfig(vision_config=vision, **tiny._SMALL), attn_implementation="sgl_kernels"
        )
    assert model.config._attn_implementation in ("eager", "sdpa")


# --- arguments ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_what_the_caller_hands_through_is_harmless_and_what_attention_names_is_not() -> None:
    model, _ = tiny.llama()
    layer = model.model.layers[0].self_attn
    q = torch.randn(1, 4, 5, 8)
    k, v = torch.randn(2, 1, 2, 5, 8)
    want = library.attention_interface(layer, q, k, v, None)[0]
    through = dict(
        labels=tiny.IDS, logits_to_keep=1, vision_feature_layer=-2, shift_labels=tiny.IDS, anything="else"
    )
    assert torch.equal(library.attention_interface(layer, q, k, v, None, **through)[0], want)
    assert {"s_aux", "cache"} <= contract_of(type(layer)).odd
    with sgl_kernels.record() as recorder:
        library.attention_interface(
            layer, q, k, v, None, s_aux=torch.ones(4)
        )  # as "sdpa", which has no sinks
    assert served(recorder) == 0


@torch.no_grad()
@pytest.mark.parametrize("way", ["apply", "name"])
def test_weights_come_from_the_eager_code(way: str) -> None:
    model, _ = tiny.llama()
    model.set_attn_implementation("eager")
    inputs = dict(input_ids=tiny.IDS, attention_mask=tiny.PADDING, output_attentions=True)
    want = model(**inputs)
    model.set_attn_implementation("sdpa")
    with sgl_kernels.install("transformers"):
        if way == "name":
            model.set_attn_implementation("sgl_kernels")
        else:
            sgl_kernels.apply(model, norms=False, linears=False)
        have = model(**inputs)
    real = tiny.PADDING.bool()
    assert len(have.attentions) == 2
    for ours, right in zip(have.attentions, want.attentions, strict=True):
        assert torch.allclose(ours.transpose(1, 2)[real], right.transpose(1, 2)[real], atol=1e-5)
    assert torch.allclose(have.logits[real], want.logits[real], rtol=1e-4, atol=1e-4)


# --- composite models ---------------------------------------------------------------------------------


def test_parts_without_sdpa_get_back_what_they_had() -> None:
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, out_features=["stage4"]
    )
    small = dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32)
    heads = dict(encoder_attention_heads=2, decoder_attention_heads=2, num_queries=4)
    plain_backbone = dict(use_timm_backbone=False, use_pretrained_backbone=False, backbone=None)
    config = transformers.DetrConfig(**small, **heads, **plain_backbone, backbone_config=backbone)
    model = transformers.DetrModel(config)
    parts = [m for m in model.modules() if isinstance(m, transformers.PreTrainedModel)]
    before = [m.config._attn_implementation for m in parts]
    setter = transformers.PreTrainedModel.set_attn_implementation
    with sgl_kernels.install("transformers"):
        model.set_attn_implementation("sgl_kernels")
        model.set_attn_implementation("sdpa")
    assert [m.config._attn_implementation for m in parts] == before
    assert transformers.PreTrainedModel.set_attn_implementation is setter


# --- depth, copies, and giving back -------------------------------------------------------------------


class Classifier(nn.Module):
    def __init__(self, *encoders: nn.Module) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, ids: Tensor, keep: Tensor) -> Tensor:
        return torch.cat(
            [e(input_ids=ids, attention_mask=keep).last_hidden_state[:, 0] for e in self.encoders], -1
        )


@torch.no_grad()
@pytest.mark.parametrize("padding", ["compute", "skip"])
def test_models_are_found_at_any_depth(padding: str) -> None:
    first, second = tiny.bert()[0], tiny.bert()[0]
    model = nn.ModuleDict({"a": Classifier(first, second), "b": nn.Sequential(first)}).eval()
    want = model["a"](tiny.IDS, tiny.PADDING)
    with sgl_kernels.apply(model, padding=padding) as applied, sgl_kernels.record() as recorder:
        have = model["a"](tiny.IDS, tiny.PADDING)
    assert len(applied.attention) == 4 and served(recorder) == 4
    assert "a.encoders.1.encoder.layer.0.attention.self" in applied.attention
    assert len(applied.packed) == (2 if padding == "skip" else 0)
    assert torch.allclose(have, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_view_is_live_and_copies_have_views_of_their_own() -> None:
    model, run = tiny.llama()
    theirs = model.config
    want = run(model)
    applied = sgl_kernels.apply(model)
    view = model.model.layers[0].self_attn.config
    assert view is not theirs and isinstance(view, type(theirs)) and view.to_dict() == theirs.to_dict()
    theirs.some_new_attribute = 3
    assert view.some_new_attribute == 3
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.config is not theirs and copied.model.config is copied.config
        with sgl_kernels.record() as recorder:
            assert torch.allclose(run(copied), want, rtol=1e-4, atol=1e-4)
        assert served(recorder) == 2
        remove(copied)
        assert copied.model.layers[0].self_attn.config is copied.config
    model.set_attn_implementation("eager")  # chosen later: it stands
    with sgl_kernels.record() as recorder:
        run(model)
    assert served(recorder) == 0
    applied.remove()
    assert model.config is theirs is model.model.layers[1].self_attn.config
    assert "sgl_kernels" not in AttentionInterface._global_mapping


def test_a_saved_model_runs_in_a_process_that_only_imports_torch(tmp_path: Path) -> None:
    model, run = tiny.llama()
    with sgl_kernels.apply(model):
        torch.save(model, tmp_path / "model.pt")
        with torch.no_grad():
            torch.save(run(model), tmp_path / "want.pt")
    code = (
        "import sys, torch; m = torch.load(sys.argv[1], weights_only=False); ids = torch.arange(5, 12)[None]\n"
        "with torch.no_grad(): have = m(input_ids=ids).logits\n"
        "want = torch.load(sys.argv[2])[:1]; assert torch.allclose(have, want, rtol=1e-4, atol=1e-4)\n"
        "print(type(m.model.layers[0].self_attn.config)._attn_implementation.fget(m.model.layers[0].self_attn.config))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.pt"), str(tmp_path / "want.pt")],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "sgl_kernels", done.stderr


@torch.no_grad()
def test_installations_end_with_the_last_block_that_needs_them() -> None:
    model, run = tiny.llama()
    applied = sgl_kernels.apply(model)
    with sgl_kernels.install("transformers"):
        with sgl_kernels.install("transformers"):
            pass
        assert library.is_installed()
    assert not library.is_installed()
    with sgl_kernels.record() as recorder:
        run(model)  # the applied model keeps the name
    assert served(recorder) == 2
    applied.remove()
    assert "sgl_kernels" not in AttentionInterface._global_mapping
    sgl_kernels.install("transformers")
    with sgl_kernels.install("transformers"):
        pass
    assert library.is_installed()  # a plain call stays
    sgl_kernels.uninstall("transformers")
    assert not library.is_installed()


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_model_set_by_name_compiles_in_one_graph(family: str) -> None:
    model, run = tiny.TRANSFORMERS[family]()
    want = run(model)
    with sgl_kernels.install("transformers"):
        model.set_attn_implementation("sgl_kernels")
        torch._dynamo.reset()
        with sgl_kernels.record() as recorder:
            have = run(torch.compile(model, backend="eager", fullgraph=True))
        torch._dynamo.reset()
    assert served(recorder) == 2
    assert torch.allclose(have, want, rtol=1e-4, atol=1e-4)


def test_attention_to_another_sequence_has_the_role_cross() -> None:
    small = dict(vocab_size=32, d_model=32, pad_token_id=0, decoder_start_token_id=0)
    bart = dict(encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2)
    models = (
        transformers.T5Model(transformers.T5Config(**small, d_kv=8, d_ff=48, num_layers=1, num_heads=4)),
        transformers.BartModel(transformers.BartConfig(**small, **bart)),
    )
    for model in models:
        with sgl_kernels.apply(model) as applied:
            roles = [found(model.get_submodule(name)).role for name in applied.attention]
        assert roles == ["self", "self", "cross"]
