"""What the last run of the loop came to: the figures, the registered version, where to look."""

from __future__ import annotations

import argparse

from pipeline.config import paths
from pipeline.config.errors import DataError
from pipeline.config.params import Params
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import read_json, read_json_lines
from pipeline.tracking import registry

_COLUMNS = ("BLEU-4", "ROUGE-L", "CIDEr-D")
_SHOWN = {"before_finetuning": "before", "model": "the model"}  # of the systems in the example


def run(params: Params, args: argparse.Namespace) -> str:
    """Print the table; returns the last line to print."""
    from pipeline.tracking import runs

    for needed in (paths.EVALUATE_REPORT, paths.REGISTER_REPORT):
        if not needed.is_file():
            raise DataError(f"{needed}: not found; run `dvc repro` first")
    evaluation, registered = read_json(paths.EVALUATE_REPORT), read_json(paths.REGISTER_REPORT)
    print(f"\n{evaluation['pictures']:>5,} test pictures  " + "".join(f"{name:>10}" for name in _COLUMNS))
    for system, scores in evaluation.items():
        if isinstance(scores, dict):
            print(f"{system.replace('_', ' '):>19}  " + "".join(f"{scores[name]:10.3f}" for name in _COLUMNS))
    example = next(iter(read_json_lines(paths.CAPTIONS)))
    print(f"\nfor example    picture {example['file_name']}")
    for system, name in _SHOWN.items():
        if system in example["captions"]:
            print(f"{name:<15}{example['captions'][system]}")
    print(f"people         {example['references'][0]}")
    model = registered["model"]
    version = registry.find_version(runs.client(), model, registered["model_sha256"])
    print(f"\nthe model      {paths.MODEL}")
    print(
        f"registered as  {f'models:/{model}/{version.number}' if version else 'nothing here yet: run `make register`'}"
    )
    print(f"the pictures   {paths.GALLERY}  (open it in a browser)")
    print("the runs       make ui")
    print("your photo     .venv/bin/python -m pipeline.commands.caption PHOTO.jpg\n")
    return "done; next: your own pictures, as README.md says"


if __name__ == "__main__":
    entrypoint.main("summary", run)
