# Every target sets up its own .venv first; on a fresh machine `make demo` is all there is to type.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One thread per process: the models are small, and more threads than cores only wait for each other.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Compiled modules are kept, for the tests start many interpreters.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: venv demo demo-real check resolve format test test-fast fuzz kill bench gpu docs clean

venv: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@echo "Setting up $(VENV) with $(CONSTRAINTS): two to three minutes and about 2 GB, once."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import sys; sys.exit(sys.version_info < (3, 11) and 'frugalign needs Python 3.11 or newer; choose one with: make venv PYTHON=python3.11')"
	$(BIN)/python -m pip install -c $(CONSTRAINTS) -e ".[dev,docs]"
	touch $@

demo: $(STAMP)
	$(BIN)/frugalign demo

# A real instruct model of 135 million parameters learns to answer in a sentence or two. MODEL is a hub id or a folder.
MODEL ?= HuggingFaceTB/SmolLM2-135M-Instruct
REAL := runs/demo-real
TO_THE_POINT := examples/to-the-point

demo-real: export OMP_NUM_THREADS = 2
demo-real: $(STAMP)
	$(BIN)/frugalign proxy --config $(TO_THE_POINT)/recipe-proxy.yaml --model_name_or_path $(MODEL) --output_dir $(REAL) --overwrite_output_dir
	$(BIN)/frugalign evaluate --model_name_or_path $(MODEL) --proxy $(REAL) --dataset_name $(TO_THE_POINT) --max_new_tokens 64 \
		--reward $(TO_THE_POINT)/reward.py:reward --output_dir $(REAL)
	$(BIN)/frugalign report $(REAL)
	@echo "Talk to it: frugalign chat --model_name_or_path $(MODEL) --proxy $(REAL) --show_rejections"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

# Every extra together, by the same pins; nothing is installed.
resolve: $(STAMP)
	$(BIN)/python -m pip install --quiet --dry-run -c $(CONSTRAINTS) -e ".[all]"

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-fast: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

# Kill every command 50 times, resume it, and compare: hours, or `make kill MOMENTS=5`. The table goes into the docs.
kill: $(STAMP)
	$(BIN)/python -m tools.kill --moments $(or $(MOMENTS),50) --write

# Random input of eight classes for an hour: no traceback, no hang, no silent change.
fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz --minutes 60

bench: $(STAMP)
	$(BIN)/python -m experiments.speed
	$(BIN)/python -m experiments.ladder

# One GPU in eight minutes: speed, memory and a learning run. Without a GPU: the same at toy size, which it says.
gpu: $(STAMP)
	$(BIN)/python -m experiments.gpu

docs: $(STAMP)
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
