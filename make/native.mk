# The C++ kernels beyond their ordinary tests: sanitizers, long fuzzing, and instruction sets that are not here.
.PHONY: asan fuzz emulated aarch64

# Python is not built with the sanitizer, so its runtime is loaded first; Python itself leaks by design.
SANITIZED = env LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0 SGL_KERNELS_CPU_LIBRARY=$(CURDIR)/build/sanitize/_cpu_sanitize.so
ASAN_TESTS ?= $(wildcard tests/kernels/test_cpu_*.py tests/fuzz/fuzz_*.py)
ASAN_EXAMPLES ?= 200

asan: venv  ## the C++ kernel tests, and a little fuzzing, under the address and undefined-behaviour sanitizers
	SGL_KERNELS_BUILD_SANITIZE=1 SGL_KERNELS_REQUIRE_EXTENSION=1 $(BIN)/python setup.py build_ext
	$(SANITIZED) SGL_KERNELS_FUZZ_EXAMPLES=$(ASAN_EXAMPLES) $(BIN)/python -m pytest $(ASAN_TESTS) -m "not slow" \
	  --timeout=3000 -q

fuzz: venv  ## ten thousand random calls of every family of C++ kernels
	$(BIN)/python -m pytest tests/fuzz/fuzz_*.py --timeout=0 -q

# AVX-512 and AMX as functions over AVX2: each function is held against a scalar definition first, then those of
# csrc/cpu/simd that are made of them, and then the kernels pass their ordinary tests on them, level by level.
EMULATED := build/emulated
EMULATION := tests/kernels/native
EMULATED_LEVELS ?= avx512 avx512bf16 amx
EMULATED_TESTS ?= tests/ops/test_parity.py $(wildcard tests/kernels/test_cpu_*.py)
# As macros only, which is how setup.py builds the kernels of these levels.
EMULATED_avx512 := $(patsubst %,-D__AVX512%__=1,F BW DQ VL)
EMULATED_avx512bf16 := $(EMULATED_avx512) $(patsubst %,-D__AVX512%__=1,VNNI BF16)
EMULATED_amx := $(EMULATED_avx512bf16) $(patsubst %,-D__AMX_%__=1,TILE BF16 INT8)
EMULATED_CXX := g++ -std=c++20 -O2 -Wall -Wno-psabi -mavx2 -mfma -mf16c -I$(EMULATION)/emulated
EMULATED_AT := import sys, torch; from sgl_kernels.kernels.cpu.loader import load; why = load(); \
  assert why is None, why; assert torch.ops.sgl_kernels_cpu.isa_level() == sys.argv[1]
emulated: venv  ## the AVX-512 and AMX kernels on a machine with AVX2, instruction by instruction emulated
	mkdir -p $(EMULATED)
	$(EMULATED_CXX) $(EMULATION)/check_emulated*.cpp -o $(EMULATED)/check_emulated
	$(EMULATED)/check_emulated
	$(foreach level,$(EMULATED_LEVELS),echo "== simd/ at $(level)" && \
	  $(EMULATED_CXX) -Wno-unknown-pragmas -fno-math-errno -DSGL_KERNELS_EMULATED $(EMULATED_$(level)) -Icsrc/cpu \
	    $(EMULATION)/check_simd*.cpp -o $(EMULATED)/check_simd && $(EMULATED)/check_simd &&) true
	SGL_KERNELS_BUILD_EMULATED=1 SGL_KERNELS_REQUIRE_EXTENSION=1 $(BIN)/python setup.py build_ext
	for level in $(EMULATED_LEVELS); do echo "== $$level"; \
	  export SGL_KERNELS_CPU_LIBRARY=$(CURDIR)/$(EMULATED)/_cpu_emulated.so SGL_KERNELS_CPU_ISA=$$level; \
	  $(BIN)/python -c "$(EMULATED_AT)" $$level && $(BIN)/python -m pytest $(EMULATED_TESTS) -q -n 2 -m "not slow" \
	    -k "cpu or sage" --cpu-arch $${level/amx/avx512bf16} || exit 1; done

# Baseline code on aarch64 is NEON. The checks need neither torch nor Python, only a cross compiler and an emulator.
AARCH64 := build/aarch64
AARCH64_CXX := aarch64-linux-gnu-g++
AARCH64_FLAGS := -std=c++20 -O2 -Wall -Wno-psabi -Wno-unknown-pragmas -fno-math-errno -static -Icsrc/cpu
AARCH64_PACKAGES := g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static
AARCH64_CALLS ?= 400
aarch64:  ## cross-compile the portable kernels for NEON and check them under qemu
	if ! { command -v $(AARCH64_CXX) && command -v qemu-aarch64-static; } > /dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; \
	  then apt-get install -y --no-install-recommends $(AARCH64_PACKAGES); \
	  else echo "make aarch64 needs the packages $(AARCH64_PACKAGES)"; exit 1; fi; fi
	mkdir -p $(AARCH64)
	$(AARCH64_CXX) $(AARCH64_FLAGS) tests/kernels/native/check_simd*.cpp -o $(AARCH64)/check_simd
	qemu-aarch64-static $(AARCH64)/check_simd
	$(AARCH64_CXX) $(AARCH64_FLAGS) csrc/cpu/rowwise/kernels_baseline.cpp tests/kernels/native/check_rows.cpp -o $(AARCH64)/check_rows
	qemu-aarch64-static $(AARCH64)/check_rows
	$(AARCH64_CXX) $(AARCH64_FLAGS) csrc/cpu/nvfp4/kernels_baseline.cpp csrc/cpu/nvfp4/quantize_baseline.cpp \
	  tests/kernels/native/check_nvfp4.cpp -o $(AARCH64)/check_nvfp4
	qemu-aarch64-static $(AARCH64)/check_nvfp4
	$(AARCH64_CXX) $(AARCH64_FLAGS) csrc/cpu/attention/kernels_baseline.cpp csrc/cpu/attention/sage/kernels_baseline.cpp \
	  tests/kernels/native/check_attention.cpp -o $(AARCH64)/check_attention
	qemu-aarch64-static $(AARCH64)/check_attention $(AARCH64_CALLS)
