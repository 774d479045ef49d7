"""What follows a forward: `generate` of the well-known architectures, stock against ours, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import sgl_kernels
from tests.integrations.sweep.comparing import TOLERANCE

NAMED = (
    "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "MistralForCausalLM",
    "MixtralForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM",
    "PhiForCausalLM", "Phi3ForCausalLM", "FalconForCausalLM", "OPTForCausalLM", "BloomForCausalLM", "MptForCausalLM",
    "Olmo2ForCausalLM", "CohereForCausalLM", "GraniteForCausalLM", "StableLmForCausalLM", "Starcoder2ForCausalLM",
    "BartForConditionalGeneration", "T5ForConditionalGeneration", "MT5ForConditionalGeneration", "MarianMTModel",
    "PegasusForConditionalGeneration", "M2M100ForConditionalGeneration", "MBartForConditionalGeneration",
    "WhisperForConditionalGeneration",
)  # fmt: skip
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "static": {"cache_implementation": "static", "disable_compile": True},
    "beams": {"num_beams": 2},
}
NEW = 4


def prompts(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Two prompts, the second padded on its left; sounds have no padding."""
    if "input_features" in inputs:
        return {"input_features": inputs["input_features"]}
    ids = inputs["input_ids"].clone()
    keep = torch.ones_like(ids)
    keep[1, :3] = 0
    ids[1, :3] = model.config.get_text_config().pad_token_id or 1
    return {"input_ids": ids, "attention_mask": keep}


def generated(model: Any, given: dict[str, Any], strategy: str) -> Any:
    """Tokens and the scores they were chosen by."""
    torch.manual_seed(7)
    first = {}
    if model.config.is_encoder_decoder and model.generation_config.decoder_start_token_id is None:
        first = {"decoder_start_token_id": 0}
    return model.generate(
        **given, **first, **STRATEGIES[strategy], do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip


def ways(model: Any) -> Iterator[str]:
    """The model as each way of serving leaves it, and at last as it was."""
    with sgl_kernels.apply(model):
        yield "apply"
    own = model.config._attn_implementation
    with sgl_kernels.install("transformers"):
        model.set_attn_implementation("sgl_kernels")
        yield "name"
        model.set_attn_implementation(own)
    yield "restored"


def compare_generated(model: Any, inputs: dict[str, Any]) -> tuple[dict[str, str], set[str]]:
    """({'name beams': what differs, ...}, the strategies that stock runs)."""
    given = prompts(model, inputs)
    stock: dict[str, Any] = {}
    for strategy in STRATEGIES:
        try:
            stock[strategy] = generated(model, given, strategy)
        except Exception:  # what stock cannot do proves nothing about us
            continue
    faults: dict[str, str] = {}
    for way in ways(model):
        for strategy, right in stock.items():
            try:
                found = _difference(generated(model, given, strategy), right)
            except Exception as error:
                found = f"{type(error).__name__}: {str(error)[:120]}"
            if found:
                faults[f"{way} {strategy}"] = found
    return faults, set(stock)


def _difference(ours: Any, right: Any) -> str:
    if not torch.equal(ours.sequences, right.sequences):
        return f"tokens {ours.sequences[:, -NEW:].tolist()} for {right.sequences[:, -NEW:].tolist()}"
    for step, (have, want) in enumerate(zip(ours.scores, right.scores, strict=True)):
        if not torch.allclose(have, want, rtol=TOLERANCE, atol=TOLERANCE):
            return f"scores of step {step} by {float((have - want).abs().nan_to_num(0.0).max()):.3g}"
    return ""
