"""A tiny random model of any class of transformers, and inputs for it, from nothing but its configuration class."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tests.integrations.tiny import randomised

# The first pattern that matches the whole name of an integer attribute gives its value.
SIZES: tuple[tuple[str, int], ...] = (
    (r"(vocab_size|.*_vocab_size)", 99),
    (r"(num_key_value_heads|num_kv_heads|n_head_kv|.*num_key_value_heads)", 2),
    (r"(num_attention_heads|num_heads|n_head|n_heads|.*attention_heads|num_kv_shared_layers_)", 4),
    (r"(num_hidden_layers|num_layers|n_layer|n_layers|.*_layers|depth)", 2),
    (r"(head_dim|d_kv|kv_channels|global_head_dim|attention_head_size|qk_nope_head_dim|v_head_dim)", 8),
    (r"qk_rope_head_dim", 8),
    (r"(q_lora_rank|kv_lora_rank)", 16),
    (
        r"(hidden_size|d_model|n_embd|dim|embed_dim|embedding_size|word_embed_proj_dim|projection_dim|.*_hidden_size)",
        32,
    ),
    (
        r"(intermediate_size|d_ff|ffn_dim|n_inner|.*_ffn_dim|.*intermediate_size|.*mlp_dim|ffn_hidden_size|d_inner)",
        48,
    ),
    (r"(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_.*_positions)", 64),
    (r"(num_experts|n_routed_experts|num_local_experts)", 4),
    (r"(num_experts_per_tok|moe_topk|num_selected_experts)", 2),
    (r"n_group", 1),
    (r"topk_group", 1),
    (r"image_size", 16),
    (r"patch_size", 4),
    (r"(sliding_window|attention_window_size)", 3),
    (r"(num_mel_bins)", 16),
)
SPECIAL = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
BACKBONE: dict[str, Any] = dict(
    model_type="resnet", embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage4"]
)  # fmt: skip
DETECTION: dict[str, Any] = dict(
    backbone=None, use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=BACKBONE, num_queries=4
)  # fmt: skip
SPECIFIC: dict[str, dict[str, Any]] = {
    "detr": DETECTION,
    "conditional_detr": DETECTION,
    "deformable_detr": DETECTION
    | {"backbone_config": BACKBONE | {"out_features": ["stage2", "stage3", "stage4"]}},
    "gemma4_text": {
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 99,
    },
    "informer": {"prediction_length": 2},
    "bridgetower_vision_model": {"hidden_size": 64},
    "bridgetower": {"hidden_size": 64, "num_attention_heads": 4},
    "musicgen_decoder": {"num_codebooks": 1},
}
"""What the configuration of a model type needs besides small sizes."""
NAMES = ("MODEL", "MODEL_FOR_CAUSAL_LM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM", "MODEL_FOR_IMAGE_TEXT_TO_TEXT")


def classes() -> list[str]:
    """The names of all model classes of the auto mappings."""
    from transformers.models.auto import modeling_auto

    found: set[str] = set()
    for mapping in NAMES:
        for names in getattr(modeling_auto, f"{mapping}_MAPPING_NAMES").values():
            found.update([names] if isinstance(names, str) else names)
    return sorted(found)


def tiny_config(cls: Any) -> Any:
    """A configuration of a class with every size that is known by its name made small, at any depth."""
    given: dict[str, Any] = {}
    whole = cls()
    for name, value in vars(whole).items():
        small = _small(name, value)
        if small is not None:
            given[name] = small
    parts = {
        name: tiny_config(type(part))
        for name in cls.sub_configs
        if (part := getattr(whole, name, None)) is not None
    }
    accepted = {name: value for name, value in given.items() if not name.startswith("_")}
    accepted |= SPECIFIC.get(cls.model_type, {})
    parts = {name: part for name, part in parts.items() if name not in accepted}
    for attempt in (accepted, {n: v for n, v in accepted.items() if not n.endswith("token_id")}):
        with contextlib.suppress(Exception):
            return cls(**attempt, **parts)
    return cls(**parts)


def _small(name: str, value: Any) -> Any:
    if name in SPECIAL:
        return SPECIAL[name]
    if name.endswith("token_id") and isinstance(value, int):
        return 90 + len(name) % 8
    if name in ("layer_types", "mlp_layer_types") and isinstance(value, list):
        kinds = list(dict.fromkeys(value))
        return (kinds * 2)[:2]
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)


def build(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A random model of a class, in evaluation mode, and inputs for its forward. Raises what its class raises."""
    import transformers

    cls = getattr(transformers, name)
    config = tiny_config(cls.config_class)
    torch.manual_seed(0)
    model = randomised(cls(config))
    weights = sum(p.numel() for p in model.parameters())
    if weights > 30_000_000:
        raise ValueError(f"{name} has {weights} parameters: a size of its configuration has no pattern here")
    return model, dict(_inputs(model, config))


def _inputs(model: Any, config: Any) -> Iterator[tuple[str, Any]]:
    accepted = set(inspect.signature(model.forward).parameters)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 80, (2, 7), generator=generator)
    main = model.main_input_name
    if "input_ids" in accepted:
        yield "input_ids", ids
    if "decoder_input_ids" in accepted:
        yield "decoder_input_ids", ids[:, :5] + 1
    vision = getattr(config, "vision_config", config)
    size, channels = getattr(vision, "image_size", 16), getattr(vision, "num_channels", 3)
    needs_pixels = main == "pixel_values" or ("pixel_values" in accepted and "projection_dim" in vars(config))
    if needs_pixels:
        sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        yield "pixel_values", torch.randn((2, channels, *sides), generator=generator)
    if main == "input_features":
        bins = getattr(config, "num_mel_bins", getattr(config, "feature_projection_input_dim", 16))
        shape = (2, bins, 128) if "whisper" in config.model_type else (2, 40, bins)
        yield "input_features", torch.randn(shape, generator=generator)
    if main == "input_values":
        yield "input_values", torch.randn((2, 2000), generator=generator)
