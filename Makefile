# Everything runs from a fresh clone with Python 3.11 and make; `make help` lists the targets.
PYTHON ?= python3.11
VENV := .venv
# One more than the two cores that the tests are made for: some of them wait for other processes.
TEST_WORKERS ?= 3
BIN := $(VENV)/bin
export DAGSTER_HOME ?= $(CURDIR)/.dagster_home
export UVEITIS_DATA ?= $(CURDIR)/data

.DEFAULT_GOAL := help
.PHONY: help install demo dev test test-slow test-docker lint format bench screenshots clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## Make .venv with everything in it (part of all other targets)

# torch comes first: sam2 has no wheel and builds against the torch that is there.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchvision setuptools wheel
	SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation sam2
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(DAGSTER_HOME)/dagster.yaml: dagster.yaml
	mkdir -p $(@D)
	cp $< $@

demo: install $(DAGSTER_HOME)/dagster.yaml ## Run the lanes on sample images, from manifest to COCO labels
	$(BIN)/uveitis-assets demo

dev: install $(DAGSTER_HOME)/dagster.yaml ## Open the UI and the daemon on http://127.0.0.1:3000
	$(BIN)/dagster dev --host 127.0.0.1 --port 3000

test: install ## Run the tests
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: install ## Run the demo, the browser, a lost database, ONNX exports, and trainings in processes (minutes)
	$(BIN)/python -m pytest -m slow -rs $(addprefix uveitis_assets_tests/,e2e deployment detection/exports detection/training)

test-docker: install ## Run the tests that need a Docker engine (as root they start one)
	$(BIN)/python -m pytest -m docker -rs uveitis_assets_tests/docker

# ruff knows no methods of Path objects: the last line finds those that write.
lint: install ## Lint, check formatting, types, imports between rooms, and writes outside storage
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports importlinter.ini
	! grep -rnE --include='*.py' --exclude-dir=storage '\.write_text\(|\.write_bytes\(|\.rename\(|os\.fdopen\([^)]*w|open\([^)]*["'"'"'](w|a|x|r\+)[bt+]*["'"'"']' uveitis_assets

format: install ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## Measure speed, memory and ROI accuracy
	$(BIN)/python benchmarks/preprocessing.py
	$(BIN)/python benchmarks/merging.py
	$(BIN)/python benchmarks/landing.py
	$(BIN)/python benchmarks/definitions.py
	$(BIN)/python benchmarks/roi_accuracy.py
	$(BIN)/python benchmarks/detector_loading.py

screenshots: install ## Take the pictures of README and docs again (needs chromium and chromedriver)
	$(BIN)/python -m uveitis_assets_tests.e2e.screenshots --out docs/images

clean: ## Remove the virtual environment and the caches; data and DAGSTER_HOME stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
