# What other projects test of the functions that ours stand in for: torch's own samples come inside its wheel. Their
# tests do not: each suite below is a checkout's, of the release that is installed. What passes stock must pass served.
.PHONY: peer-suites

# TORCH_TESTS=path/to/test_transformers.py of a checkout of torch: stock, and with install("torch").
TORCH_TESTS ?=
TORCH_TESTS_ARGS ?= -k CPU

# HF_TESTS=path/to/tests of a checkout of transformers (its tests need httpx, parameterized and timeout-decorator): stock,
# with every model set to "sgl_kernels" by name, and with every model applied. What is left out needs the network, several
# devices or another library, or asks that the configuration of the model it made say "sdpa" or "eager" (sdpa_can_dispatch,
# attn_implementation_composite), where serving it says "sgl_kernels".
HF_TESTS ?=
HF_MODELS ?= llama qwen3 bert bart gemma3 mistral
HF_WAYS ?= name,apply
HF_TESTS_ARGS ?= -k "not Integration and not fsdp and not tensor_parallel and not tp_ and not flash_attn and not training \
	and not sdpa_can_dispatch and not attn_implementation_composite"

PEER_COMPARE = PYTHONPATH=$(CURDIR) $(BIN)/python -m tests.peer_suites.compare

peer-suites: venv  ## torch's own samples on our functions; TORCH_TESTS=.../test_transformers.py and HF_TESTS=.../tests run theirs
	$(BIN)/python -m pytest tests/peer_suites -q -n 2 --dist worksteal
	$(if $(TORCH_TESTS),$(PEER_COMPARE) torch $(TORCH_TESTS) $(TORCH_TESTS_ARGS))
	$(if $(HF_TESTS),lost=0; for model in $(HF_MODELS); do $(PEER_COMPARE) $(HF_WAYS) \
		$(HF_TESTS)/models/$$model/test_modeling_$$model.py $(HF_TESTS_ARGS) || lost=1; done; exit $$lost)
