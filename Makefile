# Works on a bare machine with Python 3.11 to 3.13 and make.
SHELL := /bin/sh
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
# A run starts many processes; compiling torch and Flower anew in each takes minutes.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: run test check

run: $(READY)
	$(BIN)/python -m simulations $(ARGS)

# Some tests wait for processes: three workers keep two cores busy.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses 3 $(ARGS)

# In the same order as CI.
check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# uv installs in a fraction of pip's time. The editable install is done once; it is
# repeated when a requirement changes.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { \
	echo "make: no Python 3.11, 3.12 or 3.13 with ensurepip on the PATH: install one, or name it by make PYTHON=..." >&2; \
	exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@
