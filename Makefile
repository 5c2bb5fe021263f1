# Everything runs in .venv, made from constraints.txt by pip; nothing needs root.
PYTHON ?= python3
STAMP := .venv/.stamp
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo up env gpus machine backup restore upgrade test check format bench figures clean

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## Start the laboratory and run the first experiment on real data
	@.venv/bin/normcore demo

up: $(STAMP) ## Start the laboratory: API, scheduler, worker, MLflow, broker
	@.venv/bin/normcore up

env: ## Write .env, the settings of docker compose, with passwords of its own
	@docker/make-env

gpus: ## Write docker-compose.gpus.yml, a worker for each GPU
	@docker/make-gpus $(FILE)

machine: ## Let another machine join, and print its key: make machine NAME=gpu-box
	@docker/machines add "$(NAME)"

backup: ## Take a backup of the laboratory under docker compose into backups/
	@docker/backup

restore: ## Make a laboratory out of a backup: make restore FROM=backups/NAME
	@docker/restore "$(FROM)"

upgrade: ## Bring the laboratory under docker compose to this checkout's version, without losing a job
	@docker/upgrade

test: $(STAMP) ## Run the tests, the slowest shown
	@.venv/bin/python -m pytest -n 2 --dist loadgroup --durations 15

check: $(STAMP) ## Lint, types, import contracts, Docker's files
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/hadolint Dockerfile
	.venv/bin/check-jsonschema --builtin-schema vendor.compose-spec $$(git ls-files 'docker-compose*.yml')

format: $(STAMP) ## Put the code into its form
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: $(STAMP) ## Measure what the README claims
	@for script in benchmarks/*.py; do echo "== $$script"; .venv/bin/python $$script || exit 1; done

figures: $(STAMP) ## Train what the README shows of the probes, and draw it
	@.venv/bin/python docs/figures.py

clean: ## Remove the environment and the laboratory's state
	rm -rf .venv var .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 12) else f"normcore needs Python 3.11 or 3.12, found {v[0]}.{v[1]}; name one with: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
