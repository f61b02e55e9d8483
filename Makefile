# `make demo` and `make test` need Python >= 3.11 and make; they set up the rest in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
NEEDS_MORE := gpu or torch or llamacpp or nvcc

.PHONY: demo test test-engines lint types check clean

demo: $(VENV)/.run
	$(BIN)/trace demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto -m "not ($(NEEDS_MORE))"

test-engines: $(VENV)/.engines
	$(BIN)/python -m pytest -n auto -m "(torch or llamacpp or nvcc) and not gpu"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy follows the names the package is installed under, so the flat folders get their namespace here
types: $(VENV)/.dev
	rm -rf build/types && mkdir -p build/types/tensortrace
	ln -s $(CURDIR)/kernels $(CURDIR)/tracer $(CURDIR)/analyze build/types/tensortrace/
	MYPYPATH=build/types $(BIN)/mypy -p tensortrace

check: test lint types test-engines

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.run: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) install -e . -c constraints.txt
	touch $@

$(VENV)/.dev: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) install -e '.[dev]' -c constraints.txt
	touch $@ $(VENV)/.run

$(VENV)/.engines: $(VENV)/.dev
	$(PIP) install -e '.[dev,torch,llamacpp]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
