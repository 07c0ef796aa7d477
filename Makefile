# `make demo` segments a photo with the default weights; `make test` checks everything;
# `make docs` makes the site, docs/_build/html/index.html. Each makes what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test docs format clean

demo: $(VENV)/installed
	$(BIN)/groupmix-sam segment examples/coffee.jpg --box 170,16,420,312 --output coffee_box.png
	$(BIN)/groupmix-sam segment examples/coffee.jpg --point 365,290 --output coffee_point.png

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) docs
	$(BIN)/pytest --numprocesses 2 --dist loadfile

docs: $(VENV)/installed-dev
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build/html

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed: setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: setup.cfg $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info coffee_box.png coffee_point.png
