# Every target sets up what it needs. PYTHON is any Python from 3.11 on.
PYTHON ?= python3
BIN := .venv/bin
GOLDENS ?= tests/goldens

.PHONY: install chat test test-oldest test-slow check format bench builtin figures small dialog conformance clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; say make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

chat: install
	@$(BIN)/ccm chat

test: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2

test-oldest: .venv-oldest/installed
	HF_HUB_OFFLINE=1 .venv-oldest/bin/python -m pytest -n 2

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[dev]'
	@touch $@

test-slow: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m benchmarks

builtin: install
	$(BIN)/python -m ccm.builtin.build

figures: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m ccm.builtin.figures

small: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m reproductions.small --data $(DATA)

dialog: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m reproductions.dialog --data $(DATA)

conformance: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m ccm.conformance $(GOLDENS)

clean:
	rm -rf .venv .venv-oldest build src/*.egg-info
