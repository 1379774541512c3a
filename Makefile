# make demo: install what running needs, run Table 8 small on drawn images, show what came out.   make test: every test.
# make demo SEED=1 runs another seed; make demo DATA=imagenette downloads photographs (if needed) and runs mini's Table 8.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
SEED ?= 0
DATA ?= textures
DEMO_SCALE = $(or $(if $(filter textures,$(DATA)),smoke),$(if $(filter imagenette,$(DATA)),mini),$(error DATA=$(DATA): valid are textures (the default) and imagenette))
SCALE ?=
PROTOCOL ?=
TARGETS ?=
T ?=

.PHONY: demo test test-slurm detectron2 report lint bench mlflow wheel clean

demo: $(READY)
	$(if $(filter mini,$(DEMO_SCALE)),$(BIN)/jigclu data check imagenette >/dev/null 2>&1 || $(BIN)/jigclu data get imagenette)
	$(BIN)/python orchestrate/run.py table8 --scale $(DEMO_SCALE) --cluster local --first-seed $(SEED)
	$(BIN)/python -m reports --scale $(DEMO_SCALE) --targets table8
	@echo "Next: open reports/out/index.html$(if $(filter smoke,$(DEMO_SCALE)),; on real photographs: make demo DATA=imagenette)"

# make test T=mirror runs tests/mirror only.
test: $(DEV)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(if $(T),tests/$(T))

# On a real SLURM cluster of three nodes on this machine. As root: missing packages are installed.
test-slurm: $(DEV)
	tests/slurm/run $(BIN)/python -m pytest -m slurm --timeout 900 $(SLURM_TESTS)

# The Python part of Detectron2's released v0.6: no compiler, CPU and GPU. (detection/compat.py supplies what is missing.)
detectron2: $(READY)
	$(PIP) --quiet --editable '.[detection]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'setuptools>=77'
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-binary :all: --require-hashes --requirement detection/v0.6.txt --dest $(VENV)/detectron2
	tar -xzf $(VENV)/detectron2/pb1-detectron2-0.6.tar.gz -C $(VENV)/detectron2
	cp -R $(VENV)/detectron2/pb1-detectron2-0.6/detectron2 "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

report: $(READY)
	$(BIN)/python -m reports $(if $(SCALE),--scale $(SCALE)) $(if $(PROTOCOL),--protocol $(PROTOCOL)) $(if $(TARGETS),--targets $(TARGETS))

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(DEV)
	$(BIN)/python -m benchmarks

mlflow: $(READY)
	$(BIN)/python -m jigclu_cli mlflow

wheel: $(DEV)
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

# torch and torchvision in one command: their builds must match. The constraints are the versions that were tested.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Installing into $(VENV): about 6 GB on disk (torch with its CUDA libraries), 2 to 15 minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(DEV): $(READY)
	$(PIP) --editable '.[dev]'
	@touch $@

clean:
	rm -rf reports/out .pytest_cache .ruff_cache .mypy_cache build dist *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
