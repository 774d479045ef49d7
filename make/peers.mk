# Other libraries on our benchmark cases, in an environment of their own over this one's torch.
.PHONY: bench-peers

PEERS := .cache/peers
PEERS_ARGS ?= --threads 1 2

$(PEERS)/.ready: $(VENV)/.ready requirements/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > \
	  "$$($(PEERS)/bin/python -c 'import site; print(site.getsitepackages()[0])')/project.pth"
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check -r requirements/peers.txt
	touch $@

# Ours is imported from the checkout, whose extension `venv` builds. PEERS_ARGS="--threads 1 --clock cpu" where
# others use the machine too; --help names the rest.
bench-peers: venv $(PEERS)/.ready  ## zentorch, OpenVINO and ONNX Runtime beside ours: benchmarks/results/MACHINE/peers.json
	$(PEERS)/bin/python -m benchmarks.peers $(PEERS_ARGS)
