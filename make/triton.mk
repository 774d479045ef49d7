# Triton without a GPU: the interpreter for results, ahead-of-time compilation for resources.
$(VENV)/.triton: $(VENV)/.ready requirements/triton.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/triton.txt
	touch $@

.PHONY: triton-parity triton-aot triton-aot-update
triton-parity: venv $(VENV)/.triton  ## our Triton kernels in the interpreter: every op, case and dtype
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/ops/test_parity.py -k /triton --require triton -q
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/interpreted -q

triton-aot: venv $(VENV)/.triton  ## compile our Triton kernels for eight GPUs and compare with the budgets
	$(BIN)/python benchmarks/triton_aot.py

triton-aot-update: venv $(VENV)/.triton  ## the same, and write the budgets
	$(BIN)/python benchmarks/triton_aot.py --update
