# Every command sets itself up first; the second run is quick. CI calls the same targets.
PYTHON ?= python3
ENV := .venv
RUN := $(ENV)/bin/python
SETUP := $(ENV)/lock-$(shell sha256sum requirements-dev.lock | cut -c1-16)
QUICK := not slow and not stack and not load

.PHONY: up down status load setup test test-slow test-load test-stack check bench lock clean

up: setup ## five workers behind Nginx on port 8080, and a forecast to see them work
	$(RUN) -m fleet up $(ARGS)

down: setup ## stop all of it
	$(RUN) -m fleet down

status: setup ## what runs, and how busy it is
	$(RUN) -m fleet status

load: setup ## 50 users for five minutes with k6; ARGS="open -e RATE=20" for another load
	$(RUN) -m fleet.load $(ARGS)

test: setup ## the quick suite
	$(RUN) -m pytest -m "$(QUICK)" $(ARGS)

test-slow: setup ## faults and load against real processes
	$(RUN) -m pytest -m "slow and not stack and not load" $(ARGS)

test-load: setup ## k6 and Locust for seconds each, against a server that lies and against real workers
	$(RUN) -m pytest -m load $(ARGS)

test-stack: setup ## real containers: needs Docker with Compose
	$(RUN) -m pytest -m stack $(ARGS)

check: setup ## lint and types
	$(RUN) -m ruff check .
	$(RUN) -m mypy

bench: setup ## the engine against the machine's ceilings, on one core
	taskset -c 0 $(RUN) -m benchmarks.engine $(ARGS)

setup: $(SETUP)

# The environment is that of one lock: another lock makes another one.
$(SETUP): requirements-dev.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	rm -rf $(ENV) && $(PYTHON) -m venv $(ENV)
	@echo "Installing the locked packages (torch is large; this takes a minute or two) …"
	$(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(RUN) -m app.model.native.build || echo "Workers will use torch instead of the CPU kernel, several times slower."
	touch $@

lock: ## resolve the newest versions that fit pyproject.toml (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --group dev pyproject.toml -o requirements-dev.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes -c requirements-dev.lock pyproject.toml -o requirements.lock

clean: ## remove what was built and cached (not the reports)
	rm -rf $(ENV) .cache .run app/model/native/lib
