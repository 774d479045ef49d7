"""The names of the ops, by the groups that settings speak about."""

from __future__ import annotations

OP_GROUPS: dict[str, tuple[str, ...]] = {
    "attention": ("attention", "attention_lse", "attention_varlen"),
    "norm": ("rms_norm", "layer_norm", "group_norm", "norm_scale_shift", "residual_gate_norm_scale_shift"),
    "rope": ("apply_rope", "qk_norm_rope"),
    "modulate": ("scale_shift", "gate_residual"),
    "activation": ("silu_mul", "gelu_tanh", "gelu_mul"),
    "linear": ("linear",),
    "nvfp4": ("nvfp4_quantize", "nvfp4_dequantize", "nvfp4_linear"),
}
"""A group key in a configuration file, and the ops it speaks for.

Plain names rather than Op objects because core knows no op; a test compares this table with the registry.
"""

SHAPE_CLASSES: dict[str, tuple[str, ...]] = {"attention": ("decode", "short", "medium", "long")}
"""The groups whose calls come in classes of shapes, which a rule may name; each op says which class a call is in."""

RULES_GROUP = "attention"
"""What a rule in a configuration file speaks about that names no op."""

OPS: tuple[str, ...] = tuple(op for ops in OP_GROUPS.values() for op in ops)
