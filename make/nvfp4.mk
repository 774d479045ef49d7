.PHONY: nvfp4-agreement

AGREEMENT := .cache/nvfp4-agreement

# The other libraries get an environment of their own, over this one's torch: none may touch the pinned versions.
$(AGREEMENT)/.ready: $(VENV)/.installed
	$(PYTHON) -m venv $(AGREEMENT)
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > \
	  "$$($(AGREEMENT)/bin/python -c 'import site; print(site.getsitepackages()[0])')/project.pth"
	$(AGREEMENT)/bin/pip install --quiet --disable-pip-version-check torchao==0.18.0 nvidia-modelopt==0.47.0 \
	  compressed-tensors==0.20.0 comfy-kitchen==0.2.40 mlx==0.32.4 mlx-cpu==0.32.4
	touch $@

# FLASHINFER=path/to/utils_fp4.py adds flashinfer's reference, which is in its repository and not in its package.
nvfp4-agreement: $(AGREEMENT)/.ready  ## compare the NVFP4 quantiser with five other libraries, to the bit
	$(AGREEMENT)/bin/python -m benchmarks.nvfp4.agreement $(if $(FLASHINFER),--flashinfer $(FLASHINFER)) $(ARGS)
