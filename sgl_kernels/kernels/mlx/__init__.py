"""Kernels through MLX for Apple GPUs: the crossing, the mathematics in MLX's ops, and the fused Metal kernels."""
