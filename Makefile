# What a developer does here; `make` alone lists it.

PYTHON := .venv/bin/python
# Tests wait for servers more than they compute, so two processes pay even on few cores.
TEST_PROCESSES ?= 2
COMPILE := PATH=".venv/bin:$$PATH" uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header \
	--universal --python-version 3.11 --no-emit-package fullon-persistence

.PHONY: help demo up test manual bench simulation hostile cache-proof crash-points planted-bugs chaos soak lint format \
	lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.installed ## run the main job on real trades and check every row
	$(PYTHON) -m deploy.demo

up: .venv/.installed ## run the service and its servers until Ctrl-C
	$(PYTHON) -m deploy.up

test: lint ## check style and types, then run all tests
	$(PYTHON) -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal

manual: .venv/.installed ## show row by row that the manual holds, or what differs and why (JSON=file)
	$(PYTHON) -m pytest tests/manual --quiet --numprocesses $(TEST_PROCESSES) --dist worksteal --manual-table $(if $(JSON),--manual-json $(JSON))

bench: .venv/.installed ## measure, beside the usual way and the limit (ONLY=name, QUICK=1)
	$(PYTHON) -m tests.benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick)

simulation: .venv/.installed ## the core in a hostile world in memory, seed by seed, then with bugs in it (SEEDS=5000, FIRST=0, BUGS=2000)
	$(PYTHON) -m tests.simulation --seeds $(or $(SEEDS),5000) --first $(or $(FIRST),0) --bugs $(or $(BUGS),2000)

cache-proof: .venv/.installed ## show that the cache is never stale, and what a read of it costs (ONLY=figures, SECONDS=60, JSON=file; about 10 minutes)
	$(PYTHON) -m tests.cache.proof $(if $(ONLY),--only $(ONLY)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(JSON),--json $(JSON))

hostile: .venv/.installed ## messages of every kind, damaged in every way, with good ones between (MESSAGES=100000, SEED=1)
	$(PYTHON) -m tests.hostile --messages $(or $(MESSAGES),100000) --seed $(or $(SEED),1)

crash-points: .venv/.installed ## kill the service at every await on the way of a message (about 10 minutes)
	CRASH_POINTS=all $(PYTHON) -m pytest -s tests/faults/test_crash_points.py

planted-bugs: .venv/.installed ## see that the checker of `make chaos` finds 18 bugs that are put in (about 15 minutes)
	$(PYTHON) -m tests.faults.gauntlet $(if $(ONLY),--only "$(ONLY)")

chaos: .venv/.installed ## break everything in turn, then compare everything (MINUTES=5, SEED=1, ONLY=broker)
	$(PYTHON) -m tests.faults.chaos --minutes $(or $(MINUTES),5) --seed $(or $(SEED),1) $(if $(ONLY),--only "$(ONLY)")

soak: .venv/.installed ## one kind of fault again and again, with figures (ONLY=kills, KILLS=200, JSON=file; about an hour)
	$(PYTHON) -m tests.faults.soak $(if $(ONLY),--only $(ONLY)) $(if $(KILLS),--kills $(KILLS)) $(if $(JSON),--json $(JSON))

lint: .venv/.installed ## check style and types
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy

format: .venv/.installed ## put the code into its format
	$(PYTHON) -m ruff check --fix --quiet
	$(PYTHON) -m ruff format

lock: ## write the versions and hashes of all dependencies anew (needs uv)
	$(COMPILE) --extra dev pyproject.toml deploy/requirements.in --output-file requirements.lock
	$(COMPILE) --extra service pyproject.toml --output-file requirements-service.lock

clean: ## remove what was installed and what the servers stored
	rm -rf .venv .servers .bench dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/.installed: requirements.lock pyproject.toml deploy/install.sh
	@sh deploy/install.sh
