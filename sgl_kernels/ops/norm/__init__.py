"""Normalisation: RMS, layer and group norm, and the fused adaLN forms."""
