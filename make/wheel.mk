# One wheel for several torch releases: built here, tested on another.
.PHONY: wheel stable-abi
# A release whose installation is not the CPU build takes gigabytes; any from 2.10 on will do.
OTHER_TORCH ?= 2.14.1
# The tests run away from the sources, or Python would import the package from here and not from the wheel.
ELSEWHERE := build/elsewhere
OTHER := .cache/torch-$(OTHER_TORCH)

wheel: venv  ## the wheel of this package: dist/*.whl
	rm -rf dist
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps -w dist .

$(OTHER)/.ready:
	$(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/pip install --quiet --disable-pip-version-check torch==$(OTHER_TORCH)
	$(OTHER)/bin/pip install --quiet --disable-pip-version-check numpy pytest pytest-timeout hypothesis
	touch $@

stable-abi: wheel $(OTHER)/.ready  ## test the wheel, built on the pinned torch, on another: OTHER_TORCH=2.14.1
	$(OTHER)/bin/pip install --quiet --disable-pip-version-check --force-reinstall --no-deps dist/*.whl
	$(OTHER)/bin/pip install --quiet --disable-pip-version-check dist/*.whl
	rm -rf $(ELSEWHERE) && mkdir -p $(ELSEWHERE) && cp -r tests $(ELSEWHERE)/
	printf '[pytest]\npythonpath = .\nmarkers =\n    slow\n' > $(ELSEWHERE)/pytest.ini
	cd $(ELSEWHERE) && $(CURDIR)/$(OTHER)/bin/python -m pytest -c pytest.ini --import-mode=importlib -q \
	  -p no:cacheprovider -m "not slow" tests/kernels/test_cpu_*.py tests/ops/test_parity.py -k "cpu or torch_sdpa"
