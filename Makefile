# `make` alone lists what there is. Everything runs in .venv, which `make env` builds once.

PYTHON ?= python3
# A Python that somebody asked for replaces another one in .venv; the default does not.
SETUP := PYTHON='$(PYTHON)' PYTHON_CHOSEN='$(filter-out file,$(origin PYTHON))' tools/setup_env.sh
BIN := .venv/bin
# Packages are installed without bytecode. Where it may not be written, each process compiles torch anew: 12 s of CPU.
unexport PYTHONDONTWRITEBYTECODE

SCRIPTS := $(wildcard train_net.py converter.py demo.py hubconf.py tools/*.py)

.PHONY: help env oracle demo demo-panoptic test test-fast test-head checkout lint bench soak fuzz format clean distclean sweep

help:
	@echo 'make demo       trains a small DETR on drawn shapes and shows what it finds'
	@echo 'make demo-panoptic  the same with masks and panoptic maps'
	@echo 'make test       runs every test          (ARGS="-k matcher" chooses some)'
	@echo 'make test-fast  without the slow ones'
	@echo 'make test-head D2=/path/to/detectron2   runs every test with the Detectron2 of a checkout; nothing is'
	@echo '                compiled or installed, its Python sources come before those in .venv'
	@echo 'make bench      how fast, beside its peers: benchmarks/RESULTS.md, over an hour on two cores'
	@echo '                (ARGS="inference losses" measures some parts, ARGS=--list names them)'
	@echo '                (ARGS=gpu measures on a GPU, in five minutes: benchmarks/GPU.md)'
	@echo 'make soak       an hour of training, killing and resuming (MINUTES=5 is shorter)'
	@echo 'make fuzz       hostile data, images, configs and checkpoints: 2,000 cases  (CASES=500, ARGS="--seed 7")'
	@echo 'make lint       ruff and mypy'
	@echo 'make format     ruff, with its corrections written'
	@echo 'make env        builds .venv: torch, Detectron2 and the rest; the others call it'
	@echo '                (PYTHON=python3.12 chooses the interpreter, 3.10 to 3.13)'
	@echo 'make clean      removes caches and build leftovers'
	@echo 'make distclean  removes .venv and .oracle as well'

env:
	@$(SETUP) env

# The original implementation, for the parity tests alone.
oracle: env
	@$(SETUP) oracle

demo: env
	$(BIN)/python tools/quickstart.py $(ARGS)

demo-panoptic: env
	$(BIN)/python tools/quickstart.py --panoptic $(ARGS)

test: env oracle
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-fast: env oracle
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow' $(ARGS)

test-head: checkout env oracle
	DETECTRON2_CHECKOUT='$(abspath $(D2))' PYTHONPATH='$(abspath $(D2))' $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

checkout:
	@test -n '$(D2)' -a -f '$(D2)/detectron2/__init__.py' || { \
		echo "error: '$(D2)' is no Detectron2 checkout, a folder with detectron2/__init__.py: name one, as in" \
			"make test-head D2=/path/to/detectron2" >&2; exit 2; }

bench: env oracle
	$(BIN)/python -m benchmarks $(ARGS)

soak: env
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),60) $(ARGS)

CASES ?= 2000

fuzz: env
	$(BIN)/python -m tests.fuzz --cases $(CASES) $(ARGS)

lint: env
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy detr benchmarks $(SCRIPTS)

format: env
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean: sweep
	@echo 'removed caches and build leftovers; kept .venv, .oracle, datasets/ and what was trained in output/'

distclean: sweep
	@$(SETUP) remove
	@echo 'removed caches and build leftovers; kept datasets/ and what was trained in output/'

sweep:
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find . \( -path ./.git -o -path ./.venv -o -path ./.oracle -o -path ./datasets -o -path ./output \) -prune \
		-o -type d -name __pycache__ -prune -exec rm -rf {} +
