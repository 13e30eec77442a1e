"""Paths of the workspace, relative to its root, in which every command runs."""

from __future__ import annotations

from pathlib import Path

PARAMS = Path("params.yaml")
DVC_LOCK = Path("dvc.lock")

RAW = Path("data/raw")
INGEST = Path("data/ingest")
DATASET = Path("data/dataset")
MODEL = Path("models/finetune")
NEIGHBOURS = Path("models/neighbours")  # the index of the training pictures
NEIGHBOURS_SETTINGS = NEIGHBOURS / "neighbours.json"  # how captions are made and chosen
TRAINING = MODEL / "training.json"  # the facts that decided the training
COMPARED = Path("models/compare")  # a folder per architecture

REPORTS = Path("reports")
INGEST_REPORTS = REPORTS / "ingest"
BUILD_REPORT = REPORTS / "build.json"
BUILD_METRICS = REPORTS / "build.metrics.json"  # the few values of a stage that `dvc metrics` shows
SET_ASIDE = REPORTS / "set_aside.csv"
DATA_PAGE = REPORTS / "data.html"
FINETUNE_REPORT = REPORTS / "finetune.json"
FINETUNE_METRICS = REPORTS / "finetune.metrics.json"
FINETUNE_CURVE = REPORTS / "finetune.csv"
COMPARE_REPORTS = REPORTS / "compare"
EVALUATE_REPORT = REPORTS / "evaluate.json"
EVALUATE_METRICS = REPORTS / "evaluate.metrics.json"
EVALUATE_FOLDER = REPORTS / "evaluate"
CAPTIONS = EVALUATE_FOLDER / "captions.jsonl"
GALLERY = EVALUATE_FOLDER / "gallery.html"
REGISTER_REPORT = REPORTS / "register.json"
PROMOTE_REPORT = REPORTS / "promote.json"

WORK = Path(".work")  # locks and caches; nothing here is a stage's output
STOPPED_INGESTS = WORK / "ingest"  # pictures of sources in buckets, of runs that stopped
TRAININGS = WORK / "training"  # states of unfinished trainings
COSTS = WORK / "costs"  # measured durations of trainings
SAID = WORK / "captions"  # test captions of registered versions
FEATURES = WORK / "features"  # image features of frozen encoders
SCHEDULE = WORK / "schedule.json"  # written by the scheduler while it runs
