"""One class, every way of calling it: its own implementation, ours by name, and `apply`."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import sgl_kernels
from tests.integrations.sweep.inputs import run

TOLERANCE = 2e-4


def inputs_of(inputs: dict[str, Any], model: Any) -> Iterator[tuple[str, dict[str, Any], Tensor | None]]:
    """(mode, inputs, the rows that somebody reads: (batch, length) or None for all)."""
    accepted = inspect.signature(model.forward).parameters
    yield "nomask", inputs, None
    ids = inputs.get("input_ids", inputs.get("inputs_embeds"))
    if ids is None or "attention_mask" not in accepted or "attention_mask" in inputs:
        return
    keep = torch.ones(ids.shape[:2], dtype=torch.long)
    keep[1, ids.shape[1] - 3 :] = 0
    yield "asis", inputs | {"attention_mask": keep}, keep.bool()
    yield "leftpad", inputs | {"attention_mask": keep.flip(1)}, keep.flip(1).bool()


def results(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a model's output by name."""
    out = run(model, inputs)
    pairs = out.items() if hasattr(out, "items") else enumerate(out if isinstance(out, tuple) else (out,))
    return {
        str(name): value for name, value in pairs if isinstance(value, Tensor) and value.is_floating_point()
    }


def difference(have: dict[str, Any], want: dict[str, Any], read: Tensor | None) -> str:
    """What differs where somebody reads, or ''."""
    for name, right in want.items():
        ours = have.get(name)
        if ours is None or ours.shape != right.shape:
            return f"{name} is missing or of another shape"
        if read is not None and right.ndim >= 2 and right.shape[:2] == read.shape:
            ours, right = ours[read], right[read]
        elif read is not None and name == "pooler_output" and not read[:, 0].all():
            continue  # taken from the first token, which is padding here
        scale = max(1.0, float(right.abs().max())) if right.numel() else 1.0
        if not torch.allclose(ours, right, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True):
            return f"diff {float((ours - right).abs().max()):.3g} {name}"
    return ""


def compare(model: Any, inputs: dict[str, Any]) -> dict[str, str]:
    """{'name leftpad': 'diff 0.1 logits', ...}: every way that differs from stock or raises where stock works."""
    faults: dict[str, str] = {}
    stock: dict[str, dict[str, Any]] = {}
    modes = list(inputs_of(inputs, model))
    for mode, given, _ in modes:
        try:
            stock[mode] = results(model, given)
        except Exception:  # what stock cannot do proves nothing about us
            continue

    def check(way: str, right: dict[str, dict[str, Any]]) -> None:
        for mode, given, read in modes:
            if mode in right:
                try:
                    found = difference(results(model, given), right[mode], read)
                except Exception as error:
                    found = f"{type(error).__name__}: {str(error)[:120]}"
                if found:
                    faults[f"{way} {mode}"] = found

    before = {id(c): c._attn_implementation for c in _configurations(model)}
    own = model.config._attn_implementation
    try:
        with sgl_kernels.apply(model):
            check("apply", stock)
    except Exception as error:
        faults["apply SET"] = f"{type(error).__name__}: {str(error)[:120]}"
    check("removed", stock)
    given_back = stock
    if {c._attn_implementation for c in _configurations(model)} != {own}:
        # Parts have implementations of their own; transformers' setter gives all of them one, without us too.
        with contextlib.suppress(Exception):
            model.set_attn_implementation(own)
            given_back = {mode: results(model, given) for mode, given, _ in modes if mode in stock}
    with sgl_kernels.install("transformers"):
        for way, implementation, right in (("name", "sgl_kernels", stock), ("restored", own, given_back)):
            try:
                model.set_attn_implementation(implementation)
            except Exception as error:
                faults[f"{way} SET"] = f"{type(error).__name__}: {str(error)[:120]}"
                continue
            check(way, right)
    if own == "sdpa" and any(c._attn_implementation != before[id(c)] for c in _configurations(model)):
        faults["restored SET"] = "another implementation than before"
    if not stock:
        faults["stock"] = "does not run on these inputs"
    return faults


def _configurations(model: nn.Module) -> list[Any]:
    configs = (getattr(m, "config", None) for m in model.modules())
    return list({id(c): c for c in configs if hasattr(c, "_attn_implementation")}.values())
