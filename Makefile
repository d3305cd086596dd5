# make demo   real logs → judged, paired, exported preference data, and a report
# make cortex-demo   recorded outcomes → a trained policy → the gate → promoted, a worse one refused, rolled back
# make test   all tests that CI runs          make test-all  also the long ones
# make check  ruff and mypy --strict          make bench     benchmarks against peers
# Each target sets up .venv first. Needs Python 3.11, its pip and venv, and make; nothing else.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# uv does not read pip's settings: pass on where wheels are; where nothing is said, take PyTorch's CPU index.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
TORCH_BACKEND := $(if $(strip $(UV_FIND_LINKS)),,--torch-backend=cpu)

.PHONY: setup demo cortex-demo test test-all check bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements-cpu.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "celr-ray's lock file is for Python 3.11, $(PYTHON) is another; call: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(TORCH_BACKEND) --no-deps --compile-bytecode -r requirements-cpu.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

demo: setup
	$(BIN)/celr-ray pipeline --config examples/demo/demo.yaml

cortex-demo: setup
	CELR_RAY=$(BIN)/celr-ray examples/cortex/demo.sh runs/cortex-demo

test: setup
	$(BIN)/python -m pytest -m "not slow"

test-all: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/ingest.py

clean:
	rm -rf $(VENV) runs build dist *.egg-info
