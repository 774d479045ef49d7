"""Ahead-of-time compilation of our Triton kernels for GPUs that need not be here: `make triton-aot`."""
