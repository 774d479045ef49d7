"""How: our own kernel bodies. Nothing here imports sgl_kernels."""
