# make demo    the main job on two small real networks, with a report to look at
# make test    the whole test suite
# make bench   the benchmarks beside what a user would otherwise run
# make bench-quick   some cases of each family, in less than three minutes
# make bench-peers   the same, with the packages that others use (benchmarks/requirements-peers.txt) beside ours
# make lint    formatters, linter, types
#
# Each sets up what it needs in .venv and builds the extension; a second call is quick.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
TORCH ?= torch==2.13.0
EXTENSION_SOURCES := $(shell find csrc -type f) setup.py pyproject.toml

.PHONY: demo test bench bench-quick bench-peers lint clean install
.DELETE_ON_ERROR:

demo: $(VENV)/.built
	$(PY) -m stitchkern demo --out report

test: $(VENV)/.built
	$(PY) -m pytest $(ARGS)

bench: $(VENV)/.built
	$(PY) -m pytest benchmarks --benchmark-only --benchmark-json=benchmarks/results/cpu.json $(ARGS)
	$(PY) -m benchmarks.table benchmarks/results/cpu.json README.md docs/BENCHMARKS.md
	$(PY) -m benchmarks.plot benchmarks/results/cpu.json docs/img/benchmarks.svg

bench-quick: $(VENV)/.built
	$(PY) -m pytest benchmarks --quick --benchmark-only --benchmark-json=benchmarks/results/quick.json $(ARGS)
	$(PY) -m benchmarks.table benchmarks/results/quick.json

bench-peers: $(VENV)/.peers
	$(MAKE) bench

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $$(find csrc tests/executor -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

install: $(VENV)/.built

# torch first and by itself: whatever asks for it later finds it there, in a version that is known to work here.
$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "stitchkern needs Python 3.10 or newer; name one with PYTHON=…"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing; on Debian: apt-get install python3-venv"; exit 1; }
	@command -v $${CXX:-g++} >/dev/null || { echo "a C++ compiler is missing; on Debian: apt-get install g++"; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig; assert os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h"))' 2>/dev/null || { echo "Python's headers are missing; on Debian: apt-get install python3-dev"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.built: $(VENV)/.installed $(EXTENSION_SOURCES)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --config-settings editable_mode=compat --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.built requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# without what they ask for: see the file
$(VENV)/.peers: $(VENV)/.built benchmarks/requirements-peers.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/requirements-peers.txt
	touch $@

clean:
	rm -rf build dist *.egg-info stitchkern/_C*.so $(VENV)/.built
