# make demo: set up, run Table 8 small on embedded data, build the report.   make test: everything that proves it works.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SCALE ?=
PROTOCOL ?=
TARGETS ?=

.PHONY: demo test test-slurm detectron2 report lint bench mlflow clean

demo: $(READY)
	$(BIN)/python orchestrate/run.py table8 --scale smoke --cluster local
	$(MAKE) report

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

# On a real SLURM cluster of three nodes on this machine. As root: the packages are installed where they are missing.
test-slurm: $(READY)
	tests/slurm/run $(BIN)/python -m pytest -m slurm --timeout 900 $(SLURM_TESTS)

# Detectron2's released v0.6, Python parts alone: no compiler, CPU and GPU. (detection/compat.py supplies what is missing.)
detectron2: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[detection]'
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-binary :all: --require-hashes --requirement detection/v0.6.txt --dest $(VENV)/detectron2
	tar -xzf $(VENV)/detectron2/pb1-detectron2-0.6.tar.gz -C $(VENV)/detectron2
	cp -R $(VENV)/detectron2/pb1-detectron2-0.6/detectron2 "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

report: $(READY)
	$(BIN)/python -m reports $(if $(SCALE),--scale $(SCALE)) $(if $(PROTOCOL),--protocol $(PROTOCOL)) $(if $(TARGETS),--targets $(TARGETS))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks

mlflow: $(READY)
	$(BIN)/python -m mlflow server --host 127.0.0.1 --port 5000 --backend-store-uri sqlite:///$${JIGCLU_STORE:-$(CURDIR)/runs}/mlflow.db --artifacts-destination $${JIGCLU_STORE:-$(CURDIR)/runs}/mlartifacts

# torch and torchvision in one command: their builds must match. The constraints are what was tested.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf reports/out .pytest_cache .ruff_cache .mypy_cache build *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
