# Every model class of transformers, tiny and random, stock against ours. About an hour on two cores.
#   make sweep-transformers SWEEP="BertModel T5Model"     some classes
.PHONY: sweep-transformers
SWEEP ?=

sweep-transformers: venv  ## every architecture of transformers, small and random: its own result against ours
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.integrations.sweep $(SWEEP)
