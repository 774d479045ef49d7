"""Where a quantised weight goes: the layout that its device's kernels read, made once and remembered."""

from __future__ import annotations

import torch

from sgl_kernels.core.device import Device, probe
from sgl_kernels.core.dispatch import MAX_BOUND, current
from sgl_kernels.core.registry import registry
from sgl_kernels.ops.nvfp4.facts import LinearFacts
from sgl_kernels.ops.nvfp4.formats import ScaledFormat, ScaledTensor
from sgl_kernels.ops.nvfp4.layouts import holds, to_layout

OP = "nvfp4_linear"
MIDDLING = 512
"""Rows of x that the order of selection is asked with: a weight lies in one layout, whatever calls come."""


def for_device(weight: ScaledTensor, activation: str = "bf16") -> ScaledTensor:
    """The weight in the layout that its device's own kernels read, converted once and remembered.

    Its scales are checked before the first use, also where the layout stays: nobody could read them on a device before.
    """
    if not weight.examined:
        weight.examine("nvfp4_linear: weight")
    if weight.layout != "linear":
        return weight
    turn, home = current().turn, weight.homes.get(activation)
    if home is None or home[0] != turn:
        home = weight.homes[activation] = (turn, _prepared(weight, preferred_layout(weight, activation)))
    return home[1] or weight


def _prepared(weight: ScaledTensor, layout: str) -> ScaledTensor | None:
    """The copy in this layout, made where there is none; None: the weight lies in it."""
    if layout == weight.layout:
        return None
    found = weight.prepared.get(layout)
    if found is None:
        with torch.inference_mode(False):  # it outlives this call, and may then have to enter a backward
            found = weight.prepared[layout] = to_layout(weight, layout)
    return found


def as_prepared(weight: ScaledTensor) -> ScaledTensor:
    """Under the compiler the layout is no question (its answer reads scales and the machine): what is there serves."""
    for found in weight.prepared.values():
        return found
    return weight


def preferred_layout(weight: ScaledTensor, activation: str = "bf16") -> str:
    """The layout that the kernels of the weight's device read; the present one where nothing is gained."""
    if weight.layout != "linear":
        return weight.layout
    known, key = current().layouts, (weight.data.device, weight.format.name, weight.shape, activation)
    layout = known.get(key)
    if layout is None:
        if len(weight.shape) != 2 or not weight.data.numel() or weight.data.is_meta:
            return "linear"
        if len(known) >= MAX_BOUND:
            known.clear()
        layout = known[key] = layout_on(probe(weight.device), weight.format, weight.shape, activation)
    if layout == "linear" or layout in weight.prepared or holds(layout, weight):
        return layout
    return "linear"


def layout_on(where: Device, format: ScaledFormat, shape: tuple[int, ...], activation: str = "bf16") -> str:
    """The layout in which a device's implementations want a (N, K) weight, as they say; "linear" where any does."""
    n, k = shape
    facts = LinearFacts(
        torch.bfloat16, MIDDLING, n, k, activation, format.name, "linear", None, False, needs_grad=False
    )
    return current().layout(registry.op(OP), facts, where) or "linear"
