# make demo   a virtual environment, then the main job: a sentence becomes a 3D asset
# make test   the same environment, then the fast tests
#
# On Linux the ordinary index of Python packages gives PyTorch for CUDA, several gigabytes. On a machine without a GPU
# point at PyTorch's wheels for the CPU:
#   make demo TORCH_INDEX=<the address of the CPU wheels that pytorch.org/get-started shows>

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PROMPT ?= a red cube on top of a blue cylinder

.PHONY: demo test test-slow check format clean

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,video,mesh,usd]'
	touch $@

demo: $(VENV)/ready
	$(BIN)/sds3d generate "$(PROMPT)"

test: $(VENV)/ready check
	$(BIN)/python -m pytest

test-slow: $(VENV)/ready
	$(BIN)/python -m pytest -m slow

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info
