# `make demo` segments a photo with the default weights; `make demo-web` serves the page that runs in a browser; `make test`
# checks everything; `make test-all`, before a release, with more cases and the slow tests too; `make docs` makes the site,
# docs/_build/html/index.html. Each makes what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
# By file, as files share what takes long to make; in their own order, as the files with the fewest tests are not the quickest.
PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo demo-web test test-all test-release checks docs format clean

demo: $(VENV)/installed
	$(BIN)/groupmix-sam segment examples/coffee.jpg --box 170,16,420,312 --output coffee_box.png
	$(BIN)/groupmix-sam segment examples/coffee.jpg --point 365,290 --output coffee_point.png

demo-web: $(VENV)/installed-web demo_web
	$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory demo_web

demo_web: | $(VENV)/installed-web
	$(BIN)/groupmix-sam export web demo_web --images examples

# The checks run beside the tests; what they say comes after.
test: $(VENV)/installed-dev
	@$(MAKE) --no-print-directory checks >$(VENV)/checks.log 2>&1 & \
	$(BIN)/pytest $(PARALLEL); tests=$$?; \
	wait $$!; checks=$$?; \
	cat $(VENV)/checks.log; exit $$((tests || checks))

test-all: test test-release

test-release: $(VENV)/installed-dev
	GROUPMIX_SAM_TEST_ALL=1 $(BIN)/pytest -m release $(PARALLEL)

checks: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) docs

docs: $(VENV)/installed-dev
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build/html

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed: setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-web: setup.cfg $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[onnx]'
	touch $@

$(VENV)/installed-dev: setup.cfg $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build demo_web dist docs/_build *.egg-info coffee_box.png coffee_point.png
