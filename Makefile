# make run    the five methods on the embedded data set, then the comparison table
# make test   all tests but those of make test-long (minutes of kills and odd inputs) and make test-cluster (as root: a Slurm of its own)
# make check  style and types
PYTHON ?= python3
BIN := .venv/bin
PYTEST_ARGS ?= -n 2

.PHONY: run test test-long test-cluster check clean
run: .venv/.installed
	$(BIN)/broadopt-run -m experiment=quickstart method=sgd,swa,fge,sam,asam results_dir=results/quickstart
	$(BIN)/broadopt-table runs --results results/quickstart

test: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

test-long: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long -s

test-cluster: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster -s

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck -x scripts/*.sh .ci/run

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("broadopt needs Python 3.10 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,check]'
	touch $@

clean:
	rm -rf .venv results/quickstart
