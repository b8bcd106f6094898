# make train     install and run the headline command
# make test      install and run the linter and the tests; make test-all: the slow ones, too
# make soak      kill and continue runs, fifty times; watch the memory of a long one
# make bandits   the study of the 2D bandits; likewise point-worlds, fourrooms, taxi; make paper: all of these
# make ants      the study of the heavy ant
# make drawings  the drawings of README and docs
PYTHON ?= python3
BIN := .venv/bin
ENV ?= MovementBandits-v0
ifeq ($(ENV),MovementBandits-v0)
W ?= 60
U ?= 1
endif

STUDIES := bandits point-worlds fourrooms taxi

.PHONY: train test test-all soak paper ants drawings $(STUDIES)
train: .venv/installed
	cd code && ../$(BIN)/python train.py $(if $(W),-W $(W)) $(if $(U),-U $(U)) --env $(ENV) $(ARGS)

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

test-all: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m ""

soak: .venv/installed
	$(BIN)/python tests/soak.py
	$(BIN)/python tests/memory.py

$(STUDIES) ants: .venv/installed
	cd code && ../$(BIN)/python -m studies.$(subst -,_,$@) --figures ../assets

paper: $(STUDIES)

drawings: .venv/installed
	cd code && ../$(BIN)/python drawings.py ../assets

.venv/installed: requirements.txt setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt
	$(BIN)/python -m pip install --no-deps -e .
	touch $@
