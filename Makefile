# `make demo` and `make test` are all that a new clone needs; both set up .venv first.
PYTHON ?= python3
PYTEST_ARGS ?= -n 2
DEMO ?= demo.png

BIN := .venv/bin
STAMP := .venv/.installed
# The tests want Triton too, which is large and which nothing else needs without a GPU.
TESTED := .venv/.installed-kernels

.PHONY: demo page test mutants lint clean

demo: $(STAMP)
	$(BIN)/nextscale compare --output $(DEMO)
	@echo "The picture is in $(abspath $(DEMO))"

page: $(STAMP)
	$(BIN)/nextscale demo

test: $(TESTED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

# Puts faults into a copy of the sources, one at a time: each should make a test fail. Tens of minutes.
mutants: $(TESTED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants $(WORDS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=nextscale-comfyui $(BIN)/mypy --module nodes

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

$(TESTED): $(STAMP)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[kernels]'
	touch $@
