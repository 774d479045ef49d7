"""The C++ kernels for CPUs: bodies in csrc/cpu, found and loaded by `loader`."""
