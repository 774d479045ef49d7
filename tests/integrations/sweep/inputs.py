"""Inputs for the forward of any model, found by the names of its parameters: the first that it takes are used."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Any]


def run(model: nn.Module, inputs: Inputs) -> Any:
    """The model's output. Some models draw random numbers: always the same ones here."""
    torch.manual_seed(7)
    with torch.no_grad():
        return model(**inputs)


def candidates(model: Any, config: Any) -> Iterator[Inputs]:
    """Guesses, the fullest first."""
    accepted = inspect.signature(model.forward).parameters
    text = _text(accepted) | {name: make(config) for name, make in KNOWN.items() if name in accepted}
    images = list(_images(accepted, config))
    for image in images:
        yield from _with_images(model, config, text, image)
    for image in images:
        yield text | image
    sounds = ("input_features", "input_values", "audio_values", "flattened_patches", "pixel_values_videos")
    for name in sounds:
        if name in accepted:
            for values in _signals(name, config):
                yield text | {name: values}
                for mask in ("input_features_mask", "attention_mask", "padding_mask"):
                    if mask in accepted and values.ndim == 3 and "input_ids" not in text:
                        for length in values.shape[1:]:
                            yield text | {name: values, mask: torch.ones(2, length).long()}
    if "past_values" in accepted:
        yield from _series(accepted, config)
    width = _value(config, 32, "hidden_size", "d_model")
    free = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    needed = [n for n, p in accepted.items() if p.default is inspect.Parameter.empty and p.kind not in free]
    extra = {n: _r(2, 7, width) for n in needed if n not in text}
    if text or extra:
        yield text | extra
        if len(extra) == 1:
            yield text | {n: value.mT for n, value in extra.items()}  # channels first
        if "use_cache" in accepted:
            yield text | extra | {"use_cache": False}
        if "encoder_hidden_states" in accepted:
            yield text | extra | {"encoder_hidden_states": _r(2, 5, width)}
        if "token_type_ids" in accepted and "input_ids" in text:
            yield text | extra | {"token_type_ids": torch.zeros(2, 7, dtype=torch.long)}
        if "decoder_input_ids" in text:
            yield {n: v for n, v in text.items() if n != "decoder_input_ids"}
        if "inputs_embeds" in accepted:
            yield {"inputs_embeds": _r(2, 7, width)}


def _r(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _ones(config: Any) -> Tensor:
    return torch.ones(2, 7, dtype=torch.long)


KNOWN: dict[str, Callable[[Any], Tensor]] = {
    "qformer_input_ids": _ones,
    "task_inputs": lambda config: torch.ones(2, _value(config, 77, "task_seq_len"), dtype=torch.long),
    "states": lambda config: _r(2, 7, _value(config, 17, "state_dim")),
    "actions": lambda config: _r(2, 7, _value(config, 4, "act_dim")),
    "rewards": lambda config: _r(2, 7, 1),
    "returns_to_go": lambda config: _r(2, 7, 1),
    "timesteps": lambda config: torch.arange(7).expand(2, 7),
    "visual_feats": lambda config: _r(2, 5, _value(config, 32, "visual_feat_dim")),
    "visual_pos": lambda config: _r(2, 5, _value(config, 4, "visual_pos_dim")),
    "image_embeds_position_mask": lambda config: (torch.arange(7) < 3).long().expand(2, 7),
    "image_attention_mask": lambda config: torch.ones(2, 7, 2, dtype=torch.long),
    "merge_sizes": lambda config: torch.ones(2, dtype=torch.long),
    "target_sizes": lambda config: torch.tensor([[4, 4], [4, 4]]),
}
"""Inputs whose name says what they are."""


def _text(accepted: Any) -> Inputs:
    ids = torch.randint(3, 80, (2, 7), generator=torch.Generator().manual_seed(1))
    text: Inputs = {}
    if "input_ids" in accepted:
        text["input_ids"] = ids
    if "decoder_input_ids" in accepted:
        text["decoder_input_ids"] = ids[:, :5] + 1
    if "bbox" in accepted:
        text["bbox"] = torch.tensor([1, 2, 30, 40]).expand(2, 7, 4)
    return text


def _parts(config: Any) -> list[Any]:
    """A configuration and all inside it, those of images first."""
    names = [n for n in type(config).sub_configs if getattr(config, n, None) is not None]
    inner = [part for n in names for part in _parts(getattr(config, n))]
    return sorted([config, *inner], key=lambda part: "vision" not in type(part).__name__.lower())


def _value(config: Any, default: Any, *names: str) -> Any:
    for part in _parts(config):
        for name in names:
            value = getattr(part, name, None)
            if value is not None:
                return value
    return default


def _images(accepted: Any, config: Any) -> Iterator[Inputs]:
    """Images in every form that models take: whole, in frames, or as patches with their grid."""
    patch = _value(config, 4, "patch_size")
    channels = _value(config, 3, "num_channels", "in_channels", "in_chans")
    channels = channels if isinstance(channels, int) else 3
    grid = next((n for n in ("image_grid_thw", "grid_thw", "image_grid_hws") if n in accepted), None)
    if grid is not None and isinstance(patch, int):
        name = next((n for n in ("pixel_values", "hidden_states") if n in accepted), "pixel_values")
        times = _value(config, 1, "temporal_patch_size")
        whole = torch.tensor([[1, 4, 4], [1, 4, 4]])
        for depth in dict.fromkeys((times, 1, 2)):
            yield {name: _r(32, channels * depth * patch * patch), grid: whole}
        yield {name: _r(32, channels, patch, patch), grid: whole}
    if "pixel_values" not in accepted:
        return
    if "spatial_shapes" in accepted or "pixel_attention_mask" in accepted:
        shapes: Inputs = (
            {"spatial_shapes": torch.tensor([[4, 4], [4, 4]])} if "spatial_shapes" in accepted else {}
        )
        mask = {"pixel_attention_mask": torch.ones(2, 16, dtype=torch.long)} if isinstance(patch, int) else {}
        if mask:
            yield {"pixel_values": _r(2, 16, channels * patch * patch)} | shapes | mask
    for pixels in _pixels(config, channels):
        yield {"pixel_values": pixels}
        if "pixel_mask" in accepted:
            yield {"pixel_values": pixels, "pixel_mask": torch.ones(2, *pixels.shape[-2:]).long()}
    if "image_sizes" in accepted:
        size = _value(config, 16, "image_size")
        if isinstance(size, int):
            sizes = torch.tensor([[size, size], [size, size]])
            yield {"pixel_values": _r(2, 2, channels, size, size), "image_sizes": sizes}
            yield {"pixel_values": _r(2, channels, size, size), "image_sizes": sizes}


def _pixels(config: Any, channels: int) -> Iterator[Tensor]:
    size = _value(config, 32, "image_size", "img_size")
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    yield _r(2, channels, *sides)
    frames = _value(config, 2, "num_frames", "frames_per_clip")
    if max(sides) <= 64:
        yield _r(2, frames, channels, *sides)
        yield _r(2, channels, frames, *sides)
    yield _r(2, channels, 64, 64)
    yield _r(2, channels, 96, 320)
    yield _r(2, channels, 224, 224)


def _with_images(model: Any, config: Any, text: Inputs, image: Inputs) -> Iterator[Inputs]:
    """One image in each text, as many image tokens as the model makes features of it."""
    token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    features = getattr(model, "get_image_features", None)
    if token is None or features is None or not 0 <= token < 99 or "input_ids" not in text:
        return
    found: Any = None
    with contextlib.suppress(Exception), torch.no_grad():
        found = features(**image)
    found = getattr(found, "pooler_output", found)
    parts = list(found) if isinstance(found, (list, tuple)) else [found]
    if not parts or not isinstance(parts[0], Tensor):
        return
    count = sum(f.reshape(-1, f.shape[-1]).shape[0] for f in parts) // 2
    if count > 300:
        return
    ids = text["input_ids"]
    ids = torch.cat([ids[:, :3], torch.full((2, count), token), ids[:, 3:]], 1)
    whole = text | image | {"input_ids": ids}
    yield whole
    yield whole | {"token_type_ids": (ids == token).long()}
    yield whole | {"mm_token_type_ids": (ids == token).long()}


def _signals(name: str, config: Any) -> Iterator[Tensor]:
    if name == "pixel_values_videos":
        size, frames = _value(config, 16, "image_size", "crop_size"), _value(config, 4, "frames_per_clip")
        size = size if isinstance(size, int) else size[0]
        yield _r(2, frames, 3, size, size)
        return
    bins = _value(
        config,
        16,
        "num_mel_bins",
        "feature_projection_input_dim",
        "n_mels",
        "input_dim",
        "feature_size",
        "input_feat_per_channel",
    )
    length = _value(config, 64, "max_length", "max_source_positions")
    if name == "input_values":
        yield _r(2, 2000)
        yield _r(2, 1, 2000)
        yield _r(2, length, bins)
        yield _r(2, 1, length, bins)
        yield _r(2, bins, 64)
        return
    if name == "flattened_patches":
        width = _value(config, 32, "patch_embed_hidden_size")
        yield torch.cat([torch.ones(2, 9, 2), _r(2, 9, width)], -1)
        yield torch.cat([torch.ones(2, 9, 2), _r(2, 9, 3 * 16)], -1)
        return
    yield _r(2, bins, 2 * length)
    yield _r(2, 40, bins)
    yield _r(2, bins, 40)
    yield _r(2, bins, 128)
    yield _r(2, bins, 3000)
    side = _value(config, 64, "spec_size")
    yield _r(2, 1, side * 4, bins)


def _series(accepted: Any, config: Any) -> Iterator[Inputs]:
    """A history long enough for the lags, and what is known of the future."""
    context = getattr(config, "context_length", None) or 12
    length = context + max(getattr(config, "lags_sequence", None) or [0])
    times = getattr(config, "num_time_features", 0)
    size = getattr(config, "input_size", getattr(config, "num_input_channels", 1))
    future = getattr(config, "prediction_length", 4) or 4
    for tail in ((), (size,)):
        inputs: Inputs = {"past_values": _r(2, length, *tail)}
        more: Inputs = dict(
            past_time_features=_r(2, length, times), past_observed_mask=torch.ones(2, length, *tail),
            future_values=_r(2, future, *tail), future_time_features=_r(2, future, times),
        )  # fmt: skip
        yield inputs | {n: v for n, v in more.items() if n in accepted}
        yield inputs
