# Every habitual act. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO = results/quickstart
NOTEBOOK = notebooks/01_train_and_score.ipynb
# A file's tests stay in one process, because they share models and results that take long to make;
# files go in their own order, for by number of tests the few long ones would come last, alone.
PYTEST = $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL = help
.PHONY: help demo test lint format notebooks backend real bench kaggle badges docs clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11 to 3.13 is needed: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp is written only when the whole installation went through.
$(VENV)/.run: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	@touch $@

demo: $(DEMO)/01_train_and_score.ipynb  ## execute notebook 01 on the built-in models; print its table
	@cat $(DEMO)/table.md
	@echo "notebook, results and figure: $(DEMO)"

# Executed under another name first, so that a notebook that is there is a whole one.
$(DEMO)/01_train_and_score.ipynb: $(NOTEBOOK) configs/quickstart.yaml embedder_helpers/*.py $(VENV)/.run
	@mkdir -p $(DEMO)
	$(BIN)/python -m papermill $(NOTEBOOK) $(DEMO)/executing.ipynb -p OUT $(DEMO) --no-log-output
	@mv $(DEMO)/executing.ipynb $@

test: $(VENV)/.dev  ## run the tests
	$(PYTEST)

lint: $(VENV)/.dev  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev  ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(VENV)/.dev  ## execute every notebook, as a test
	$(BIN)/python -m pytest -m notebook

# Keras takes jax or torch in TensorFlow's place, which stays installed for the tokenizers.
BACKEND ?= jax
MODELS_PATH = gemma pooling fusion projection roberta embedder training
backend: $(VENV)/.dev  ## run the tests of the models' path on another Keras backend: BACKEND=jax or torch
	$(BIN)/python -m pip install --quiet $(BACKEND)
	KERAS_BACKEND=$(BACKEND) $(PYTEST) $(MODELS_PATH:%=tests/test_%.py)

# EMBEDDER_PRESETS: a folder with gemma3_270m and roberta_6l_384; EMBEDDER_REFERENCE: one with real
# data and the official evaluator; EMBEDDER_REFERENCE_PYTHON: requirements-reference.txt installed.
real: $(VENV)/.dev  ## run the tests on real presets, which EMBEDDER_* variables name
	$(BIN)/python -m pytest -m real

# MODELS: a folder with gemma3_270m and roberta_6l_384; DATA: a folder with amazon_counterfactual.
# TORCH_ENCODE, TORCH_TRAIN: the scripts' --torch-python and --torch-model, for the peer.
MODELS ?= presets
DATA ?= data/amazon_counterfactual
bench: $(VENV)/.run  ## measure speed and memory beside their peers, in about half an hour
	$(BIN)/python benchmarks/walk.py --llm $(MODELS)/gemma3_270m --data $(DATA) $(TORCH_ENCODE)
	$(BIN)/python benchmarks/training.py --llm $(MODELS)/gemma3_270m --slm $(MODELS)/roberta_6l_384 \
	  --data $(DATA) $(TORCH_TRAIN)
	$(BIN)/python benchmarks/growth.py --llm $(MODELS)/gemma3_270m --data $(DATA)

# USER: the Kaggle account. `kaggle kernels push -p build/kaggle/…` sends what this writes.
kaggle: $(VENV)/.run  ## write a Kaggle kernel for each notebook, and the wheel: make kaggle USER=name
	@test "$(origin USER)" = "command line" || { echo "make kaggle USER=your-name-on-kaggle"; exit 1; }
	@rm -rf build/kaggle build/lib
	$(BIN)/python notebooks/kernels.py "$(USER)" build/kaggle
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/kaggle/wheel .

badges: $(VENV)/.run  ## write the address in notebooks/kernels.yaml into the notebooks
	$(BIN)/python notebooks/kernels.py

docs: $(VENV)/.run  ## write the tables of docs/configuration.md
	$(BIN)/python docs/configuration.py

clean:  ## remove the environment, what was built, what the demo made and the states it kept
	rm -rf $(VENV) $(DEMO) states build
