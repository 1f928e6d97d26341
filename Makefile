# make run    the five methods on the embedded data set, then the comparison table
# make quick  the tests that catch most, in less than a minute: formulas of every method, data, schedules, recipes and identities, tables,
#             and the five methods through the real command, undisturbed, failing, and interrupted and resumed
# make test   all tests but those of make test-long (minutes of kills and odd inputs) and make test-cluster (as root: a Slurm of its own);
#             FORK_SERVER=no gives every command a new process (tests/fork_server.py)
# make check  style and types
PYTHON ?= python3
BIN := .venv/bin
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder
QUICK := methods analysis/tables models/test_model_counts.py data/test_augment.py data/test_batches.py data/test_mixing.py
QUICK += config/test_recipes.py config/test_run_config.py training/test_evaluate.py test_architecture.py runs/test_results.py
QUICK += runs/test_resume.py::test_an_interrupted_run_goes_on_to_the_same_figures_bit_for_bit

.PHONY: run quick test test-long test-cluster check clean
run: .venv/.installed
	$(BIN)/broadopt-run -m experiment=quickstart method=sgd,swa,fge,sam,asam results_dir=results/quickstart
	$(BIN)/broadopt-table runs --results results/quickstart

quick: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) $(addprefix tests/,$(QUICK))

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
