"""Triton bodies of our ops: one source for CUDA, ROCm and XPU; importing a file here imports Triton."""
