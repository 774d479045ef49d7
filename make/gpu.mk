# A machine with an accelerator: everything that needs one, step by step. Its torch is its own (a CUDA, ROCm or XPU
# build), so this target makes no environment: GPU_PYTHON is a Python that has torch and requirements/base.txt.
#   make gpu GPU_ARGS="--steps parity,bench"        some steps
#   make gpu GPU_ARGS="--budget 570 --resume"       under a limit: what is left runs the next time
#   make gpu GPU_ARGS="--wheels .whl"               packages from a folder, without a network
#   make gpu GPU_ARGS="--device xpu"                another device; rocm is cuda to torch
.PHONY: gpu
GPU_PYTHON ?= python3
GPU_ARGS ?=

gpu:  ## parity, opcheck, graphs, sanitizer and benchmarks on an accelerator: benchmarks/results/DEVICE/
	PYTHONPATH=$(CURDIR) $(GPU_PYTHON) -m benchmarks.gpu $(GPU_ARGS)
