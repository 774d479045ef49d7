# What other projects test of the functions that ours stand in for: torch's own samples come inside its wheel.
.PHONY: peer-suites

# TORCH_TESTS=path/to/test_transformers.py of a checkout of torch: its tests run twice, stock and with install("torch"),
# and what passes stock must pass installed. Its sources are not in the wheel.
TORCH_TESTS ?=
TORCH_TESTS_ARGS ?= -k CPU

peer-suites: venv  ## torch's own samples on our functions; TORCH_TESTS=.../test_transformers.py runs its tests installed
	$(BIN)/python -m pytest tests/peer_suites -q -n 2 --dist worksteal
	$(if $(TORCH_TESTS),PYTHONPATH=$(CURDIR) $(BIN)/python -m tests.peer_suites.compare $(TORCH_TESTS) $(TORCH_TESTS_ARGS))
