# One command per task. Every target creates the environment first if there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := runs/demo
# one process per core (at most 4), each with one thread and up to 2.5 GB; workers that finish early take tests from the others
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

.PHONY: help env demo test test-long check format docs clean
help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

env: $(VENV)/installed  ## create the environment in .venv (about 5 GB, most of it torch)
$(VENV)/installed: pyproject.toml
	@echo "environment: installing into $(VENV) (takes a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV) || { echo "error: python3 has no venv module; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: env  ## plan, train and evaluate on real tiles, in minutes, on a CPU
	@rm -rf $(RUN)
	@printf '\n1/6  Real satellite tiles: NASA Blue Marble, labelled by MODIS land cover\n\n'
	@$(BIN)/moco-data demo $(RUN)/tiles
	@printf '\n2/6  What fits: this machine, then two GPUs of 8 GB\n\n'
	@$(BIN)/moco-plan
	@$(BIN)/moco-plan --gpus 2 --vram 8
	@printf '\n3/6  Pretraining without labels\n\n'
	@$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml --num_cpu_threads_per_process $$(nproc 2>/dev/null || sysctl -n hw.ncpu) \
		moco_accel/train.py --recipe recipes/cpu_demo.yaml --output-dir $(RUN)
	@printf '\n4/6  Frozen features on unseen places, beside random initialisation and mean colour\n\n'
	@$(BIN)/moco-eval $(RUN)
	@printf '\n5/6  The run in numbers, and its encoder for other libraries\n\n'
	@$(BIN)/moco-report $(RUN)
	@$(BIN)/moco-export $(RUN) $(RUN)/backbone --format timm
	@printf '\n6/6  Your own imagery and GPUs\n\n'
	@printf '  moco-data build YOUR_IMAGES data/tiles --tile-size 224\n'
	@printf '  moco-plan --gpus 2 --vram 8\n'
	@printf '  accelerate launch --config_file accelerate_configs/dual_gpu.yaml \\\n'
	@printf '      moco_accel/train.py --recipe recipes/dual8gb.yaml --set data.source=data/tiles\n\n'
	@printf '  The demo is in $(RUN): look at curves.png, neighbours.png, map.png, backbone/README.md.\n'

test: env  ## run the tests that take seconds
	@$(PYTEST) -m "not slow"

test-long: env  ## run all tests (hours)
	@$(PYTEST)

check: env  ## check lint, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: env  ## format, and fix what ruff can fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: env  ## write docs/recipe.md, the list of all recipe fields
	@$(BIN)/python docs/recipe_page.py

clean:  ## remove the environment and all runs
	rm -rf $(VENV) runs
