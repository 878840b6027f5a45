# Every target sets up what it needs. PYTHON is any Python from 3.11 on.
PYTHON ?= python3
BIN := .venv/bin
GOLDENS ?= tests/goldens

# Kernels, and with them the order of sums, are chosen by the processor: each setting stands for other ones. Threads
# that wait let others run: there are two processes of tests.
PROCESSORS ?= nothing ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=SSE41 \
	ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=COMPATIBLE MKL_CBWR=AVX2 OMP_NUM_THREADS=1 OMP_NUM_THREADS=2
# Every floor that the README names, what is developed on, and what is new today.
VERSIONS ?= oldest t5 tested newest
T5 := 5.20.0

# $(call each,NAMES,COMMAND) runs the command with every $$name, goes on after a failure, and ends with a table.
define each
@table= status=0; for name in $(1); do echo "== $$name"; \
	if $(2); then result=passed; else result=FAILED status=1; fi; \
	table="$$table$$(printf '%-32s' $$name)$$result\n"; done; printf "\n$$table"; exit $$status
endef

# $(call environment,WHAT) sets up the one of the target; WHAT is for pip install.
define environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; say make PYTHON=/path/to/python3.11"; exit 1; }
@echo "Setting up $(@D); the first time, torch and some hundred packages are downloaded, which takes minutes."
$(PYTHON) -m venv $(@D)
$(@D)/bin/python -m pip install --disable-pip-version-check --root-user-action ignore $(1)
@touch $@
endef

.PHONY: install chat serve test test-processors test-versions test-slow check format bench gpu builtin figures small dialog \
	smollm2 conformance docs dist clean always

install: .venv/installed

# Everything that developers need, so that a chat needs nothing more.
.venv/installed: pyproject.toml constraints.txt
	$(call environment,-c constraints.txt -e '.[dev]')
	@touch .venv/plain .venv/serve

.venv/plain: pyproject.toml constraints.txt
	$(call environment,-c constraints.txt -e .)

chat: .venv/plain
	@$(BIN)/ccm chat

serve: .venv/serve
	@$(BIN)/ccm serve

.venv/serve: pyproject.toml constraints.txt
	$(call environment,-c constraints.txt -e '.[serve]')

test: install
	HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal

test-processors: install
	$(call each,$(PROCESSORS),env HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive $${name#nothing} $(BIN)/python -m pytest -n 2)

test-versions:
	$(call each,$(VERSIONS),$(MAKE) --no-print-directory test-on-$$name)

test-on-tested: test

test-on-%: .venv-%/installed
	HF_HUB_OFFLINE=1 .venv-$*/bin/python -m pytest -n 2

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(call environment,-c constraints-oldest.txt -e '.[dev]')

.venv-t5/installed: pyproject.toml constraints.txt
	mkdir -p $(@D)
	sed 's/^transformers==.*/transformers==$(T5)/' constraints.txt > $(@D)/constraints.txt
	$(call environment,-c $(@D)/constraints.txt -e '.[dev]')

.venv-newest/installed: always
	$(call environment,--upgrade --upgrade-strategy eager "$$(grep ^torch== constraints.txt)" -e '.[dev]')

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

gpu: install
	$(BIN)/python -m benchmarks.gpu $(PARTS)

builtin: install
	$(BIN)/python -m tools.builtin.build

figures: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m tools.builtin.figures

small: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m reproductions.small --data $(DATA)

dialog: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m reproductions.dialog --data $(DATA)

smollm2: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m reproductions.smollm2 --data $(DATA)

conformance: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m conformance $(GOLDENS)

# What is published: a source archive, and the wheel that is built from it.
dist: install
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

# The site of the documents: open build/docs/index.html.
docs: install
	$(BIN)/python -m sphinx -c docs -b html -W --keep-going . build/docs

clean:
	rm -rf .venv .venv-* build dist src/*.egg-info
