# scow: two commands for a new machine, `make demo` and `make test`; the rest is for those who work on it.
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: venv types
venv: $(VENV)/.stamp
$(VENV)/.stamp: pyproject.toml setup.py $(wildcard native/*.c native/*.h native/build.py)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip setuptools wheel
	$(BIN)/pip install -q -e '.[dev]'
	touch $@

types:
	mkdir -p build/types/scow
	for room in native runtime image cgroups netns cri cli scheduler; do ln -sfn ../../../$$room build/types/scow/$$room; done
