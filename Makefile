# Needs only Python, make and git: every target installs what it uses into .venv first.
# `make PYTHON=python3.12 venv` chooses the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# One stamp per installed set of extras. An environment for development can also run the demo.
INPUTS := pyproject.toml setup.py constraints.txt
DEV := $(VENV)/.installed-dev
PLOT := $(VENV)/.installed-plot
DEMO := $(if $(wildcard $(DEV)),$(DEV),$(PLOT))

# Idle threads of PyTorch soon sleep instead of spinning: tests that run side by side would slow
# each other down. Byte code is kept: dozens of processes would compile the same modules.
PASSIVE := OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=1000 PYTHONDONTWRITEBYTECODE=

.PHONY: help venv demo test test-all test-lowest lint types site format clean
.PHONY: train-small-speech train-small-piano

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(DEV)  ## Install Segue and all development tools into .venv

demo: $(DEMO)  ## Continue a prompt into demo_output/: make demo [PROMPT=my.wav] [DOMAIN=piano]
	@for domain in $(or $(DOMAIN),speech $(if $(PROMPT),,piano)); do \
	  $(BIN)/segue continue "$(or $(PROMPT),plugins/domains/$${domain%%/*}/prompt.flac)" \
	    --domain $$domain --seconds 6 --output demo_output/$$domain.wav \
	    --picture demo_output/$$domain.png || exit; \
	done

test: $(DEV)  ## Run the fast tests
	$(PASSIVE) $(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile $(ARGS)

test-all: $(DEV)  ## Run every test
	$(PASSIVE) $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-lowest:  ## Run the core's fast tests with the lowest versions of its dependencies
	$(PASSIVE) $(PYTHON) tools/lowest.py $(ARGS)

lint: $(DEV)  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)  ## Check types
	$(BIN)/python tools/typing_tree.py
	$(BIN)/mypy

site: $(VENV)/.installed-docs  ## Build the documentation into site/
	$(BIN)/python tools/typing_tree.py
	$(BIN)/mkdocs build

format: $(DEV)  ## Fix what style tools can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train-small-speech:  ## Train what ships anew, in days: make train-small-speech DATA=../shared/data/speech [OUT=folder]
train-small-piano:  ## The same for piano: make train-small-piano DATA=folder [OUT=folder]

train-small-speech train-small-piano: train-small-%: $(DEV)
	@test -n "$(DATA)" || { echo "name the data: make $@ DATA=folder"; exit 2; }
	$(BIN)/python -m pip install -c constraints.txt $(if $(filter speech,$*),-e ".[asr,stories]",mido)
	$(BIN)/python tools/train_small.py $* "$(DATA)" "$(or $(OUT),runs/small-$*)"
	$(if $(filter speech,$*),$(BIN)/python tools/train_words.py "$(DATA)" "$(or $(OUT),runs/small-$*)")

clean:  ## Remove what building and testing left; .venv and runs/ stay
	rm -rf build dist site segue.egg-info demo_output .mypy_cache .ruff_cache .pytest_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# $* is the list of extras. The stamp is written last, so that a failed install is tried again.
$(VENV)/.installed-%: $(INPUTS)
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(None if (3, 10) <= v <= (3, 13) else \
	  "Segue needs Python 3.10 to 3.13, this is %d.%d: add PYTHON=python3.12 or such" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[$*]"
	$(BIN)/python tools/typing_tree.py
	@touch $@
