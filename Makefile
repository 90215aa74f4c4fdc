# Needs CPython >= 3.11 with pip, nothing else. The first call of a target installs, later ones do not.
PYTHON ?= python3
VENV := .venv
SEEDS ?= 1
BIN := $(VENV)/bin
# --no-compile: bytecode of what is used is written when it is used, that of CUDA's tools never.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: demo test lint docs clean

demo: $(VENV)/mm.installed
	$(BIN)/python tools/demo.py --seeds $(SEEDS)

test: $(VENV)/dev.installed $(VENV)/detectron2.installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/check_words.py

docs: $(VENV)/docs.installed
	$(BIN)/mkdocs build --strict --site-dir site

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/%.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[$*]'
	touch $@

$(VENV)/detectron2.installed: tools/install_detectron2.py $(VENV)/dev.installed
	$(BIN)/python $<
	touch $@

clean:
	rm -rf $(VENV) work_dirs data/demo site
