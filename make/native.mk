# The C++ kernels beyond their ordinary tests: sanitizers, long fuzzing, and NEON under an emulator.
.PHONY: asan fuzz aarch64

# Python is not built with the sanitizer, so its runtime is loaded first; Python itself leaks by design.
SANITIZED = env LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0 SGL_KERNELS_CPU_LIBRARY=$(CURDIR)/build/sanitize/_cpu_sanitize.so
ASAN_TESTS ?= tests/kernels/test_cpu_norm.py tests/kernels/test_cpu_rope.py tests/kernels/test_cpu_elementwise.py \
  tests/kernels/test_cpu_rowwise_random.py tests/kernels/test_cpu_attention.py tests/kernels/test_cpu_nvfp4.py

asan: venv  ## the C++ kernel tests under the address and undefined-behaviour sanitizers
	SGL_KERNELS_BUILD_SANITIZE=1 SGL_KERNELS_REQUIRE_EXTENSION=1 $(BIN)/python setup.py build_ext
	$(SANITIZED) $(BIN)/python -m pytest $(ASAN_TESTS) -m "not slow" --timeout=3000 -q

fuzz: venv  ## ten thousand random calls of every family of C++ kernels
	$(BIN)/python -m pytest tests/fuzz/fuzz_*.py --timeout=0 -q

# Baseline code on aarch64 is NEON. The check needs neither torch nor Python: apt install g++-aarch64-linux-gnu
# qemu-user-static.
AARCH64 := build/aarch64
aarch64:  ## cross-compile the row and NVFP4 kernels for NEON and check them under qemu
	mkdir -p $(AARCH64)
	aarch64-linux-gnu-g++ -std=c++20 -O2 -Wall -Wno-unknown-pragmas -fno-math-errno -static -Icsrc/cpu \
	  csrc/cpu/fused_base.cpp tests/kernels/native/check_rows.cpp -o $(AARCH64)/check_rows
	qemu-aarch64-static $(AARCH64)/check_rows
	aarch64-linux-gnu-g++ -std=c++20 -O2 -Wall -Wno-unknown-pragmas -fno-math-errno -static -Icsrc/cpu \
	  csrc/cpu/nvfp4_linear_base.cpp csrc/cpu/nvfp4_quantize_base.cpp tests/kernels/native/check_nvfp4.cpp \
	  -o $(AARCH64)/check_nvfp4
	qemu-aarch64-static $(AARCH64)/check_nvfp4
