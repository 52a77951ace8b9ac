# Commands for a fresh machine with Python 3.11 or 3.12 and make:
#   make demo    a MagNet trained and a cohort scored, from slides in an object store, on a Ray cluster
#   make test    the tests, faults included; make test-long adds those that each take minutes (CI runs both)
#   make docs    the documentation site, in build/site
# Each makes the environment in .venv first. After that none needs a network.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
PYTEST := $(BIN)/python -m pytest
# Two processes of one thread each: with two each they take half as long again on two cores.
PYTEST_2 := OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile

# Loopback only, and nothing written into the user's home.
export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED ?= 0
export MLFLOW_DISABLE_TELEMETRY ?= true

.PHONY: demo test test-long check format docs environment constraints clean

demo: $(READY)
	$(BIN)/python -m ray_jobs.demo $(DEMO)

# Whole jobs one after the other: each has the machine to itself. 5 is pytest's "nothing of this kind among TESTS".
test: $(READY)
	$(PYTEST_2) -m "not flow and not long" $(TESTS) || [ $$? -eq 5 ]
	$(PYTEST) -m "flow and not long" $(or $(TESTS),tests/flows) || [ $$? -eq 5 ]

test-long: $(READY)
	$(PYTEST) -m long $(TESTS) || [ $$? -eq 5 ]

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST_2) -q -m "not flow and not slow and not long" $(TESTS)

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Warnings are errors. The theme advertises its successor on each build unless the variable is set.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "open build/site/index.html"

environment: $(READY)

$(READY): pyproject.toml constraints.txt
	@echo "making $(VENV) (about 3 GB, some minutes)"
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else f'Python 3.11 or 3.12 is needed, this is {v[0]}.{v[1]}; name another one: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --progress-bar on -q -e '.[dev,docs]' -c constraints.txt
	@touch $(READY)

# What CI tests: the versions installed now.
constraints: $(READY)
	$(BIN)/pip freeze --disable-pip-version-check --exclude-editable --exclude magnifying-networks | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) demo build *.egg-info
