# One wheel for several torch releases: built here, tested on another. And the sdist, from which anybody builds one.
.PHONY: wheel stable-abi sdist sdist-check
# A release whose installation is not the CPU build takes gigabytes; any from 2.10 on will do.
OTHER_TORCH ?= 2.14.1
# The tests run away from the sources, or Python would import the package from here and not from the wheel.
ELSEWHERE := build/elsewhere
OTHER := .cache/torch-$(OTHER_TORCH)

wheel: venv  ## the wheel of this package: dist/*.whl
	rm -rf dist
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps -w dist .

sdist: $(VENV)/.ready  ## the sources as one file, C++ included: dist/*.tar.gz
	rm -rf dist/*.tar.gz
	$(BIN)/python setup.py -q sdist -d dist

# As a user does it: a bare environment with torch in it, then one line. Minutes, for the sources are compiled anew;
# tests/test_packaging.py holds what can be checked in seconds. The environment has no compiler flags of ours, and
# commands run away from the sources.
SDIST := build/sdist
sdist-check: sdist  ## sdist -> wheel -> parity in a bare environment (compiles everything: minutes)
	rm -rf $(SDIST) && mkdir -p $(SDIST)
	$(PYTHON) -m venv $(SDIST)/venv
	$(SDIST)/venv/bin/pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements/base.txt | cut -d' ' -f1)
	SGL_KERNELS_REQUIRE_EXTENSION=1 $(SDIST)/venv/bin/pip install --quiet --disable-pip-version-check --no-cache-dir dist/*.tar.gz
	cd $(SDIST) && venv/bin/sgl-kernels doctor --json > doctor.json
	cd $(SDIST) && venv/bin/python -c "import json; d = json.load(open('doctor.json')); \
	  assert d['extension']['status'] == d['key_module']['status'] == 'ready', d"
	cd $(SDIST) && venv/bin/sgl-kernels parity --tag smoke --backend cpu,sage_cpu,torch --json > parity.json
	cd $(SDIST) && venv/bin/python -c "import json, collections as c; \
	  n = c.Counter((x['backend'], x['status']) for x in json.load(open('parity.json'))['cells']); print(dict(n)); \
	  assert n['cpu', 'pass'] > 50 and n['sage_cpu', 'pass'], n"

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
	  -p no:cacheprovider -m "not slow" tests/kernels/test_cpu_*.py tests/ops/test_parity.py -k "cpu or torch"
