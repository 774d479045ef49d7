"""NVFP4 beyond the kernels: agreement with other libraries, speed, quality, vendors' checkpoints."""
