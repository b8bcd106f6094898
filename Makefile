# make train     install everything into .venv, then train on MovementBandits
# make test      run the linter, the type checker and the fast tests
# make test-all  run the slow tests as well
# make soak      kill all commands a hundred times and type 200 wrong inputs; watch the memory of a long run
# make gpu       on a machine with a GPU: test and measure for at most 8 minutes, and print a table
# make bandits   reproduce the study of the 2D bandits; likewise point-worlds, fourrooms and taxi
# make paper     reproduce these four studies
# make ants      reproduce the study of the heavy ant
# make others    compare the defaults for other people's environments with PPO (installs into .venv/others)
# make drawings  draw the diagrams of README and docs
PYTHON ?= python3
BIN := .venv/bin
ENV ?= MovementBandits-v0
ifeq ($(ENV),MovementBandits-v0)
W ?= 60
U ?= 1
endif

STUDIES := bandits point-worlds fourrooms taxi

.PHONY: train check test test-all soak gpu paper ants others drawings $(STUDIES)
train: .venv/installed
	cd code && ../$(BIN)/python train.py $(if $(W),-W $(W)) $(if $(U),-U $(U)) --env $(ENV) $(ARGS)

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: check
	$(BIN)/python -m pytest

test-all: check
	$(BIN)/python -m pytest -m ""

soak: .venv/installed
	$(BIN)/python tests/soak.py
	$(BIN)/python benchmarks/memory_growth.py

gpu: .venv/installed
	$(BIN)/python benchmarks/gpu.py

$(STUDIES) ants: .venv/installed
	cd code && ../$(BIN)/python -m studies.$(subst -,_,$@) --figures ../assets

paper: $(STUDIES)

others: .venv/others/installed
	cd code && PYTHONPATH=../examples ../.venv/others/bin/python -m studies.others --figures ../assets

drawings: .venv/installed
	$(BIN)/python docs/drawings.py assets

# Meta-World needs MuJoCo 3.3.0, which the pins of requirements.txt do not have.
.venv/others/installed: requirements.txt pyproject.toml setup.py install.py
	mkdir -p .venv
	grep -v mujoco requirements.txt > .venv/others.txt
	$(PYTHON) install.py .venv/others -r .venv/others.txt -e ".[others]"
	touch $@

.venv/installed: requirements.txt pyproject.toml setup.py install.py
	$(PYTHON) install.py .venv -r requirements.txt -e .
	touch $@
