# Everything sets itself up: `make demo` and `make test` work on a fresh clone with Python >= 3.11, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS ?= dev

.PHONY: setup demo test slow check format docs records clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints/torch-2.13.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints/torch-2.13.txt -e ".[$(EXTRAS)]"
	touch $(STAMP)

demo: setup
	$(BIN)/dfkd demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q -m "not slow"

slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python -m pip install -q -c constraints/torch-2.13.txt -e ".[docs]"
	$(BIN)/mkdocs build --strict

# Every table of benchmarks/results, both cores for some nights; DFKD_DATA names the folder with MNIST and CIFAR-10.
records: setup
	$(BIN)/python -m benchmarks.run digits digits-nayer-mechanism mnist-nayer mnist-lenet mnist-plain mnist-bn \
		mnist-d3k-mechanism mnist-stts-mechanism mnist-kd3 cifar10 cifar10-kd3 cifar10-kd3-long cifar10-kd3-strict \
		cifar10-16px-nayer-mechanism cifar10-16px-spaceship-28-views cifar10-16px-spaceship-200-views \
		cifar10-16px-spaceship-1000-views cifar10-16px-d3k-mechanism cifar10-16px-kd3-alpha cifar10-16px-kd3-junk \
		cifar10-long
	$(BIN)/python -m benchmarks.soft_targets
	$(BIN)/python -m benchmarks.chosen
	$(BIN)/python -m benchmarks.table --write

clean:
	rm -rf $(VENV) site dist build
