# Triton without a GPU: the interpreter for results, ahead-of-time compilation for resources.
$(VENV)/.triton: $(VENV)/.ready requirements/triton.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/triton.txt
	touch $@

# AITER's wheel (40 MB) is kept as a file: installed, it would say that this is a machine with ROCm.
AITER := amd-aiter==0.1.7.post2.dev18
$(VENV)/vendor/.ready: $(VENV)/.ready make/triton.mk
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --dest $(VENV)/vendor $(AITER)
	touch $@

# The suite runs our kernels in the interpreter and compiles them. Triton has wheels for Linux alone; elsewhere those
# tests skip and say so.
ifeq ($(shell uname -s),Linux)
test: $(VENV)/.triton $(VENV)/vendor/.ready
endif

.PHONY: triton-vendors triton-parity triton-aot triton-aot-update
triton-vendors: $(VENV)/.triton $(VENV)/vendor/.ready  ## what the tests of vendors' own Triton kernels need

triton-parity: venv $(VENV)/.triton  ## our Triton kernels in the interpreter: every op, case and dtype
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/ops/test_parity.py -k /triton --require triton -q
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/interpreted -q

triton-aot: venv $(VENV)/.triton  ## compile our Triton kernels for eight GPUs and compare with the budgets
	$(BIN)/python -m benchmarks.triton_aot

triton-aot-update: venv $(VENV)/.triton  ## the same, and write the budgets
	$(BIN)/python -m benchmarks.triton_aot --update
