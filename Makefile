# `make` or `make help` shows the menu. Works from any path, one with spaces too.
SHELL := /bin/sh
.DEFAULT_GOAL := help
BIN := .venv/bin
# Every tool finds this environment's python, and sends nothing to anybody.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_DISABLE_TELEMETRY := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: help setup demo test lint format bench register ui lock sample pretrain

help: ## this menu
	@echo "image-captioning: fine-tune a captioning model on your own pictures"
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: .venv/ready .venv/pulled ## a virtual environment in .venv, the sample pictures and git-demo

.venv/ready: requirements.lock pyproject.toml
	@python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed, found " + sys.version)'
	@echo "setup: installing into .venv; a few minutes the first time"
	@test -x $(BIN)/python || python3 -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/pulled: .venv/ready data/raw/sample.dvc models/git-demo.dvc
	@$(BIN)/python -m dvc pull --quiet --remote sample data/raw/sample.dvc models/git-demo.dvc
	@touch $@
	@echo "setup: ready; next: make demo"

demo: setup ## the whole loop on the sample: pictures in, a registered model out
	$(BIN)/python -m dvc repro
	@$(BIN)/python -m pipeline.commands.summary

test: setup ## the tests (under 10 minutes on 2 cores)
	@# Two processes of one thread each; `python -m pytest` alone runs all in one, which is easier to debug.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

lint: setup ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## put the code into the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## run benchmarks/ and write benchmarks/results/
	$(BIN)/python -m benchmarks

register: setup ## bring the model of this workspace (back) into MLflow's registry
	$(BIN)/python -m pipeline.register

ui: setup ## browse the runs and registered models at http://127.0.0.1:5000
	@$(BIN)/python -m pipeline.commands.ui

lock: ## resolve the dependencies anew and pin them in requirements.lock
	rm -rf .venv/lock && python3 -m venv .venv/lock
	.venv/lock/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	.venv/lock/bin/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' > requirements.lock

sample: setup ## draw the sample again (for those who change how it is drawn)
	$(BIN)/python -m pipeline.synthetic.sample data/raw/sample
	$(BIN)/python -m dvc add --quiet data/raw/sample
	$(BIN)/python -m dvc push --quiet --remote sample data/raw/sample.dvc

pretrain: setup ## make git-demo and another seed's again (for those who change how scenes are drawn; an hour and a half)
	OMP_NUM_THREADS=1 $(BIN)/python -m pipeline.synthetic.pretrain .work/git-demo-2 --seed 2
	OMP_NUM_THREADS=1 $(BIN)/python -m pipeline.synthetic.pretrain models/git-demo --beside .work/git-demo-2
	cp models/git-demo/README.md docs/git-demo.md
	$(BIN)/python -m dvc add --quiet models/git-demo
	$(BIN)/python -m dvc push --quiet --remote sample models/git-demo.dvc
