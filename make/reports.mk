# Reports: the parity matrix as a page, the support matrix, measurements, pictures, generated documentation.
.PHONY: doctor parity support-matrix support-evidence bench bench-dispatch bench-models plots docs
RESULTS := benchmarks/results
# One thread of CPU time also gives steady ratios on a machine that others use: make bench BENCH_ARGS="--clock cpu"
BENCH_ARGS ?= --threads 1,2

doctor: venv  ## what works on this machine, what does not, and the command that fixes it
	$(BIN)/sgl-kernels doctor

parity: venv  ## every op, case and dtype on every backend against float64: out/parity.html
	mkdir -p out
	$(BIN)/sgl-kernels parity --html out/parity.html

support-matrix: venv  ## run the smoke cases of what fits this machine: docs/support-matrix.md
	$(BIN)/python -m benchmarks.pages support-matrix

# The tests put down what they show; Triton's run only where it is installed (make triton-parity).
EVIDENCE := $(CURDIR)/build/evidence.jsonl
support-evidence: venv  ## run the proofs without a device and write them into docs/support-matrix.md
	mkdir -p build && rm -f $(EVIDENCE)
	SGL_KERNELS_EVIDENCE=$(EVIDENCE) $(BIN)/python -m pytest tests/backends tests/simulated -q -n 2
	if $(BIN)/python -c "import triton" 2>/dev/null; then SGL_KERNELS_EVIDENCE=$(EVIDENCE) TRITON_INTERPRET=1 \
	  $(BIN)/python -m pytest tests/ops/test_parity.py -k "/triton and bfloat16 or nvfp4 and /triton" -q -n 2; fi
	$(BIN)/python -m benchmarks.pages support-matrix --no-run --evidence $(EVIDENCE)

bench: venv bench-dispatch  ## measure every benchmark case: benchmarks/results/MACHINE/FAMILY.json
	$(BIN)/sgl-kernels bench --compile --out $(RESULTS) $(BENCH_ARGS)

bench-models: venv $(VENV)/.demo  ## measure whole models, stock against apply(): benchmarks/results/MACHINE/models.json
	$(BIN)/python -m benchmarks.models --out $(RESULTS)

bench-dispatch: venv  ## measure what a call costs before its kernel starts
	$(BIN)/sgl-kernels bench dispatch --out $(RESULTS)

$(VENV)/.plot: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check "matplotlib>=3.8"
	touch $@

plots: venv $(VENV)/.plot  ## draw the committed results, one picture for each op family
	$(BIN)/python -m benchmarks.pages plots

docs: venv  ## write the generated tables and docs/performance.md
	$(BIN)/python -m benchmarks.pages docs
	$(BIN)/python -m benchmarks.pages support-matrix --no-run
