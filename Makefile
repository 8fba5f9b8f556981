# Every target installs what it needs first, so `make run` and `make test` are enough on a machine with make and Python.
# ARGS goes to the program: make test ARGS="tests/unit -q", make run ARGS="--help".

BIN := .venv/bin
STAMP := .venv/.installed
COMPOSE = $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
# The group that owns Docker's socket: the container pool runs as nobody and needs it.
export JOBQ_DOCKER_GID ?= $(shell stat -c %g /var/run/docker.sock 2>/dev/null || echo 999)

.DEFAULT_GOAL := help
.PHONY: help setup run test check format chaos bench up down lock clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv with the locked packages (again only when the lock changes)

$(STAMP): requirements-dev.lock pyproject.toml scripts/setup
	@scripts/setup
	@touch $@

run: $(STAMP) ## Start jobq with a demo: scheduler and worker in one process
	@exec $(BIN)/jobq dev --demo $(ARGS)

# Most of the suite waits for real processes: four at once keep two cores busy. Each has servers of its own, and takes
# one module after the other in the order that tests/conftest.py gives them.
WORKERS ?= 4
test: $(STAMP) ## Run the tests against real PostgreSQL, Redis, RabbitMQ and Docker engines of their own
	@$(BIN)/python -m tests.services
	@$(BIN)/pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(ARGS)

check: $(STAMP) ## Lint, format check, types, import rules, dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/deptry .

format: $(STAMP) ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Two at once: most of it waits for leases to run out. What the tests measured is printed at the end.
CHAOS_WORKERS ?= 2
chaos: $(STAMP) ## Kill, freeze and cut off real processes and check that no job is lost (half an hour)
	@$(BIN)/python -m tests.services
	@$(BIN)/pytest tests -m chaos -n $(CHAOS_WORKERS) --dist loadfile -rA $(ARGS)

bench: $(STAMP) ## Measure and print JSON
	@$(BIN)/python -m bench $(ARGS)

up: ## Start the production layout on this machine with Docker Compose
	$(COMPOSE) up --build --detach

down: ## Stop it; the database's volume stays
	$(COMPOSE) down

# Versions and hashes only, so that any mirror serves them. The image's lock follows the development lock: what is
# tested is what is deployed.
LOCK = uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet
lock: ## Resolve the newest allowed versions into the two lock files (needs uv)
	$(LOCK) --upgrade --all-extras --group dev -o requirements-dev.lock
	$(LOCK) --upgrade --extra all --constraint requirements-dev.lock -o requirements.lock

clean: ## Remove .venv and all caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
