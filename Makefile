# make train   install and run the headline command
# make test    install and run the linter and all tests
PYTHON ?= python3
BIN := .venv/bin
ENV ?= MovementBandits-v0
ifeq ($(ENV),MovementBandits-v0)
W ?= 60
U ?= 1
endif

.PHONY: train test
train: .venv/installed
	cd code && ../$(BIN)/python train.py $(if $(W),-W $(W)) $(if $(U),-U $(U)) --env $(ENV) $(ARGS)

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

.venv/installed: requirements.txt setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt
	$(BIN)/python -m pip install --no-deps -e .
	touch $@
