# Common tasks. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO = results/quickstart
NOTEBOOK = notebooks/01_train_and_score.ipynb
# Real presets (gemma3_270m, roberta_6l_384) and data, which are not part of the project.
MODELS ?= presets
DATA ?= data/amazon_counterfactual
SOURCES = $(shell find embedder_helpers -name '*.py')
# A file's tests stay in one process, because they share models and results that are slow to make;
# files keep their order, since by number of tests the few slow ones would come last, alone.
PYTEST = $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL = help
.PHONY: help demo test test-slow test-all lint format notebooks backend real bench kaggle badges docs clean robustness

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11 to 3.13 is needed: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp is written only after a complete installation.
$(VENV)/.run: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	@touch $@

demo: $(DEMO)/01_train_and_score.ipynb  ## execute notebook 01 on the built-in models and print its tables
	@cat $(DEMO)/table.md
	@echo "notebook, results and figure: $(DEMO)"

# Executed under another name first, so that a notebook that exists is complete.
$(DEMO)/01_train_and_score.ipynb: $(NOTEBOOK) configs/quickstart.yaml $(SOURCES) $(VENV)/.run
	@mkdir -p $(DEMO)
	$(BIN)/python -m papermill $(NOTEBOOK) $(DEMO)/executing.ipynb -p OUT $(DEMO) --no-log-output
	@mv $(DEMO)/executing.ipynb $@

# TESTS: files or folders of tests; all of them if it is empty.
test: $(VENV)/.dev  ## run the fast tests, in five to eight minutes
	$(PYTEST) -m "not slow and not real" $(TESTS)

test-slow: $(VENV)/.dev  ## run the tests that train for longer, execute notebooks, start or kill processes
	$(PYTEST) -m "slow and not real"

test-all: test test-slow  ## run every test but those on real presets

# ROUNDS: a factor of the random trials; one round, in `make test-slow`, has about ten kills and
# 400 odd inputs, and takes two to three minutes on two cores. ROBUSTNESS_SEED=100000 makes others.
ROUNDS ?= 20
robustness: $(VENV)/.dev  ## kill, damage and starve sweeps, and bring odd input, at length: ROUNDS=20
	ROBUSTNESS_ROUNDS=$(ROUNDS) ROBUSTNESS_FAILURES=build/robustness $(PYTEST) -v tests/robustness

lint: $(VENV)/.dev  ## check style and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## fix style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# 01 runs on the real models and data that MODELS and DATA name (about ten minutes on two cores), the others
# on the measured results; 02 and 04 read the models' and data's fingerprints, in presets/ and data/.
# 05 trains the first seed again, whose embedders are not in git.
PAGES = results/notebooks
RENDER = $(BIN)/python tools/render_notebooks.py
SMALL = {llm_preset: $(MODELS)/gemma3_270m, slm_preset: $(MODELS)/roberta_6l_384, \
  task_data: $(DATA), learning_rate: 2.0e-4}
MINILM = -p ENCODER $(MODELS)/all-MiniLM-L6-v2
notebooks: $(VENV)/.dev  ## execute the notebooks and write them with their outputs to results/notebooks
	$(RENDER) notebooks/01_train_and_score.ipynb $(PAGES)/01_train_and_score.ipynb \
	  -p CONFIG amazon_counterfactual -p OVERRIDES '$(SMALL)' -p OUT build/notebooks/real
	$(RENDER) notebooks/02_layer_sweep.ipynb $(PAGES)/02_layer_sweep.ipynb \
	  -p CONFIG results/layer_sweep/sweep.yaml -p OUT results/layer_sweep
	$(RENDER) notebooks/03_compare.ipynb $(PAGES)/03_compare.ipynb -p OUT build/notebooks/report
	$(RENDER) notebooks/04_ablation.ipynb $(PAGES)/04_ablation.ipynb \
	  -p CONFIG results/ablation/ablation.yaml -p OVERRIDES '{}' -p OUT results/ablation
	$(RENDER) notebooks/05_does_it_help.ipynb $(PAGES)/05_does_it_help.ipynb $(MINILM) \
	  -p CONFIG results/verdict/amazon.yaml -p OUT results/verdict/amazon
	$(RENDER) notebooks/05_does_it_help.ipynb $(PAGES)/05_does_it_help_emotion.ipynb $(MINILM) \
	  -p CONFIG results/verdict/emotion.yaml -p OUT results/verdict/emotion

# Keras runs on jax or torch instead of TensorFlow, which stays installed for the tokenizers.
BACKEND ?= jax
backend: $(VENV)/.dev  ## run the tests of models and training on another Keras backend: BACKEND=jax or torch
	$(BIN)/python -m pip install --quiet $(BACKEND)
	KERAS_BACKEND=$(BACKEND) $(PYTEST) -m "not slow and not real" tests/models \
	  tests/experiments/test_training.py

# EMBEDDER_PRESETS: a folder with gemma3_270m and roberta_6l_384; EMBEDDER_REFERENCE: one with real
# data and the official evaluator; EMBEDDER_REFERENCE_PYTHON: requirements-reference.txt installed.
real: $(VENV)/.dev  ## run the tests on real presets, which EMBEDDER_* variables name
	$(BIN)/python -m pytest -m real

# TORCH_ENCODE, TORCH_TRAIN: the scripts' --torch-python and --torch-model, to compare with PyTorch.
# BEFORE: `--before FOLDER`, to compare with an earlier checkout.
bench: $(VENV)/.run build/gemma_2b_shape  ## measure speed and memory, compared with PyTorch and an earlier checkout
	$(BIN)/python benchmarks/forward_pass.py --llm $(MODELS)/gemma3_270m --data $(DATA) $(TORCH_ENCODE) $(BEFORE)
	$(BIN)/python benchmarks/training.py --llm $(MODELS)/gemma3_270m --slm $(MODELS)/roberta_6l_384 \
	  --data $(DATA) $(TORCH_TRAIN) $(BEFORE)
	$(BIN)/python benchmarks/growth.py --llm $(MODELS)/gemma3_270m --data $(DATA)
	$(BIN)/python benchmarks/memory.py --llm build/gemma_2b_shape --data $(DATA) $(BEFORE)

# 5 GB; written completely or not at all.
build/gemma_2b_shape: | $(VENV)/.run
	$(BIN)/python benchmarks/gemma_2b_shape.py $@

# USER: the Kaggle account. `kaggle kernels push -p build/kaggle/…` uploads what this writes.
kaggle: $(VENV)/.run  ## write a Kaggle kernel for each notebook, and the wheel: make kaggle USER=name
	@test "$(origin USER)" = "command line" || { echo "make kaggle USER=your-name-on-kaggle"; exit 1; }
	@rm -rf build/kaggle build/lib
	$(BIN)/python tools/kaggle_kernels.py "$(USER)" build/kaggle
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/kaggle/wheel .

badges: $(VENV)/.run  ## write the address in tools/kaggle_kernels.yaml into the notebooks
	$(BIN)/python tools/kaggle_kernels.py

docs: $(VENV)/.run  ## write the tables of docs/configuration.md
	$(BIN)/python tools/configuration_page.py

clean:  ## remove the environment, builds, the demo's results and its cached hidden states
	rm -rf $(VENV) $(DEMO) states build
