"""Activations of transformer MLPs: SiLU and GELU, plain and gated."""
