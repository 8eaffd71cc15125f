# make demo   set everything up and let the LLM OS do the work of demo/requests.txt
# make test   set everything up and run the tests
# make check  lint, format and types
# make bench  side-by-side timings (bench/)
#
# TORCH names the build of PyTorch to install, with pip's options if it needs any; see the README.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: demo test check format bench clean

demo: $(VENV)/demo.done
	@$(BIN)/trivium pull smollm2-135m-instruct
	@$(BIN)/python demo/run.py

test: $(VENV)/test.done
	@$(BIN)/trivium pull smollm2-135m-instruct all-minilm-l6-v2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/test.done
	$(BIN)/python bench/language.py

clean:
	rm -rf $(VENV) dist build

# One virtual environment; each target adds what it needs to it.
$(VENV)/demo.done: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --editable '.[local,plot]'
	touch $@

$(VENV)/test.done: $(VENV)/demo.done
	$(PIP) --editable '.[test]'
	touch $@

$(VENV)/dev.done: $(VENV)/test.done
	$(PIP) --editable '.[dev]'
	touch $@
