"""A tiny random model of any class of transformers, from nothing but its configuration class."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tests.integrations.sweep.inputs import candidates, run
from tests.integrations.sweep.sizes import SIZES, SPECIAL, SPECIFIC, UNSET
from tests.integrations.tiny import randomised

NAMES = ("MODEL", "MODEL_FOR_CAUSAL_LM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM", "MODEL_FOR_IMAGE_TEXT_TO_TEXT")
INNER = {
    "BigBirdPegasusDecoder": "transformers.models.bigbird_pegasus.modeling_bigbird_pegasus",
    "PegasusXDecoder": "transformers.models.pegasus_x.modeling_pegasus_x",
}
"""Classes that stand in no mapping."""
PARAMETERS = 64_000_000
"""More than this is not small: a size has no pattern."""


def classes() -> list[str]:
    """The names of all model classes of the auto mappings."""
    from transformers.models.auto import modeling_auto

    found = set(INNER)
    for mapping in NAMES:
        for names in getattr(modeling_auto, f"{mapping}_MAPPING_NAMES").values():
            found.update([names] if isinstance(names, str) else names)
    return sorted(found)


def build(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A random model of a class, in evaluation mode, and inputs that its forward takes.

    Raises what its class raises, and what its forward raises where no inputs are found.
    """
    import transformers

    cls = getattr(importlib.import_module(INNER[name]) if name in INNER else transformers, name)
    config = tiny_config(cls.config_class)
    weights = 0
    with contextlib.suppress(Exception), torch.device("meta"):
        weights = _weights(cls(config))
    if weights <= PARAMETERS:
        torch.manual_seed(0)
        model = randomised(cls(config))
        weights = _weights(model)
    if weights > PARAMETERS:
        raise ValueError(f"{weights} parameters: a size of its configuration has no pattern")
    refusals = []
    for inputs in candidates(model, config):
        try:
            run(model, inputs)
        except Exception as refusal:
            refusals.append(refusal)
        else:
            return model, inputs
    raise refusals[0] if refusals else ValueError("nothing is known of the inputs of its forward")


def _weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def tiny_config(cls: Any) -> Any:
    """A configuration of a class with every size that is known by its name made small, at any depth."""
    given: dict[str, Any] = {}
    whole = cls()
    for name, value in vars(whole).items():
        small = _small(name, value)
        if small is not None and not name.startswith("_"):
            given[name] = small
    if vars(whole).get("head_dim", 0) is None:
        given["head_dim"] = given.get("hidden_size", 32) // given.get("num_attention_heads", 4)
    if isinstance(whole_heads := getattr(whole, "num_heads", None), (list, tuple)) and "embed_dim" in given:
        given["num_heads"] = [2] * len(whole_heads)
    if "kv_lora_rank" in given and "num_key_value_heads" in given:
        given["num_key_value_heads"] = given.get("num_attention_heads", 4)  # latent attention has no groups
    if "qk_head_dim" in given:
        given["qk_head_dim"] = given.get("qk_nope_head_dim", 8) + given.get("qk_rope_head_dim", 8)
    specific = SPECIFIC.get(cls.model_type, {})
    given |= specific
    for name in cls.sub_configs:
        part = getattr(whole, name, None)
        if part is not None and name not in specific:
            with contextlib.suppress(Exception):
                given[name] = tiny_config(type(part))
    refusal: Exception | None = None
    for attempt in _fewer(given):
        try:
            config = cls(**attempt)
            _fit_rope(config)
            if not hasattr(config, "initializer_range"):
                config.initializer_range = 0.02  # some parts have it from the whole alone
            return config
        except Exception as error:
            refusal = refusal or error
    raise refusal or ValueError(cls.__name__)


def _fit_rope(config: Any) -> None:
    """Rotary sections of time, height and width that add up to half of the small head."""
    rope = getattr(config, "rope_parameters", None)
    # Sections are a default of the code in some families of images and text.
    sections = re.search(r"^glm.*text$|_vl|omni|qwen4|ernie4_5", config.model_type)
    if isinstance(rope, dict) and (sections or rope.get("mrope_section")):
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        half = int(head * rope.get("partial_rotary_factor", 1.0)) // 2
        rope["mrope_section"] = [half // 3, half // 3, half - 2 * (half // 3)]


def _fewer(given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All of it, then without what a configuration may refuse."""
    yield given
    yield {n: v for n, v in given.items() if n not in UNSET}
    yield {n: v for n, v in given.items() if not n.endswith("token_id")}
    for left_out in given:
        yield {n: v for n, v in given.items() if n != left_out}
    yield {n: v for n, v in given.items() if hasattr(v, "sub_configs")}


def _small(name: str, value: Any) -> Any:
    if name in SPECIAL:
        return SPECIAL[name]
    if value is None:
        return UNSET.get(name)
    if re.fullmatch(r".*token_(id|index)", name) and isinstance(value, int):
        return 90 + len(name) % 8
    if name in ("layer_types", "mlp_layer_types", "indexer_types") and isinstance(value, list):
        kinds = list(dict.fromkeys(value))
        return (kinds * 2)[:2]
    if name == "depths" and isinstance(value, (list, tuple)):
        return [1] * len(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)
