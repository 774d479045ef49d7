"""Modulation without a norm: scale and shift, gate and add."""
