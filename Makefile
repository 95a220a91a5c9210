# Each command does all of its own set-up, in .venv, on a machine that has only Python (3.11 or newer) and make.
PYTHON ?= python3
BIN := .venv/bin
CORE := .venv/core
READY := .venv/ready
KERAS := .venv-keras

.PHONY: demo test test-keras bench check format clean

## The main job: meta-learn from real images and compare with honest baselines (about 4 minutes on 2 cores).
demo: $(CORE)
	$(BIN)/headstart compare icons --methods maml,prototypes,joint,scratch,nearest --jobs 2 --out runs/demo

## Everything that must hold: format, lint, types, tests (one process a core: the tensors are tiny).
test: $(READY) check
	OMP_NUM_THREADS=1 PYTHONHASHSEED=0 $(BIN)/pytest -n auto --dist worksteal --durations=25

## The part for Keras models, in an environment of its own with TensorFlow (2 GB): one process a core, one thread each.
test-keras: $(KERAS)/ready
	OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 PYTHONHASHSEED=0 \
		$(KERAS)/bin/pytest tests/integrations/keras -n auto --dist worksteal --durations=25

## headstart beside its peers, which get an environment of their own (under 30 minutes on 2 quiet cores).
bench: $(READY) $(KERAS)/ready
	$(BIN)/python -m benchmarks all --out benchmarks/results
	$(KERAS)/bin/python -m benchmarks keras --without-peers --out benchmarks/results

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(CORE): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(READY): $(CORE)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(KERAS)/ready: pyproject.toml constraints.txt
	test -x $(KERAS)/bin/python || $(PYTHON) -m venv $(KERAS)
	$(KERAS)/bin/pip install --quiet --constraint constraints.txt --editable ".[keras]" pytest pytest-timeout pytest-xdist hypothesis
	touch $@

clean:
	rm -rf .venv $(KERAS) runs dist build
