"""Make a source of a person's photos and captions, and set the few params that depend on them.

Which checkpoint to start from is decided here, once, and written into `params.yaml` with the reason: later runs decide
nothing by what the network answers.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.nodes import ScalarNode

from pipeline.commands.add_bucket import list_bucket
from pipeline.commands.new_source import check_name, track
from pipeline.config import paths
from pipeline.config.errors import ConfigError, DataError, TemporaryError
from pipeline.config.params import Params
from pipeline.data.sources.archive import open_files
from pipeline.data.sources.bucket_list import check_no_list
from pipeline.data.sources.delimited import Columns
from pipeline.data.sources.layouts import find_captions_files
from pipeline.runtime.atomic_files import PARTIAL, remove, swapped_in
from pipeline.runtime.bucket import S3

_HUB_MODEL = "microsoft/git-base"
_HUB_SECONDS = 10.0
_SAMPLE = ["sample"]  # the sources of the demo, which give way to a person's own


@dataclass(frozen=True)
class Start:
    """The checkpoint to start from.

    Attributes:
        reason: why it was chosen, a comment for `params.yaml`.
        params: the keys and values to set.
    """

    reason: str
    params: Mapping[str, Any]


def init(params: Params, photos: Path | str, captions: Path | None, name: str, gpu: bool | None) -> str:
    """Make `data/raw/NAME`, let DVC track it, set the params, and return the last line to print.

    Args:
        params: of the workspace.
        photos: a folder, a zip or a tar, or `s3://BUCKET/PREFIX`, whose pictures stay there.
        captions: a table, if it is not among the photos.
        name: of the source.
        gpu: whether the trainings will run on a GPU; None looks whether this machine has one.

    Raises:
        ConfigError: the name is taken, `photos` or `captions` does not exist, or one of them is the list of a bucket.
        DataError: no captions are found.
        TemporaryError: `dvc add` failed, or the store with the bucket can't be reached.
    """
    folder = _new_folder(name)
    if isinstance(photos, str) and photos.startswith(S3):
        made = list_bucket(params, name, photos, captions)
    else:
        _check(Path(photos), captions)
        made = f"{folder} has {_copy(params, Path(photos), captions, folder):,} files"
    _track(folder)
    start = choose_start(_has_gpu() if gpu is None else gpu)
    sources = [source for source in params.ingest.sources if source not in (*_SAMPLE, name)]
    _set_params({"ingest.sources": [*sources, name], **start.params}, start.reason)
    print(f"init: {made}; DVC tracks it by {folder}.dvc")
    print(f"init: {paths.PARAMS} starts from {start.params['finetune.checkpoint']}: {start.reason}")
    first = "" if start.params["finetune.checkpoint"] == _HUB_MODEL else _install_first()
    return (
        f"set up; {first}check `git diff {paths.PARAMS}`, then `git add . && git commit -m 'My own pictures'`, and"
        " `dvc repro` trains"
    )


def choose_start(gpu: bool) -> Start:
    """Return the start for this machine: git-base at today's commit if the hub answers, else a model on a CNN."""
    commit = _hub_commit()
    if commit is None:
        return Start(
            "the hub can't be reached, and this model's image encoder comes by pip",
            {
                "finetune.checkpoint": "cnn-attention",
                "finetune.revision": None,
                "finetune.freeze": "image_encoder",
                "finetune.epochs": "auto",
                "finetune.learning_rate": "auto",
                "finetune.label_smoothing": 0.1,
                "finetune.best_by": "cider",
                "evaluate.generation.beams": 20,  # to choose among
                "evaluate.generation.no_repeat_ngram_size": 2,  # captions of few photos' models go round in circles
                "evaluate.decoding.method": "both",
                "evaluate.decoding.samples": 0,
            },
        )
    where = "a GPU trains all of it" if gpu else "without a GPU its image encoder stays fixed"
    return Start(
        f"the hub answered, so the model pretrained on photographs at its newest commit; {where}",
        {
            "build.captions.emoji": "words",
            "finetune.checkpoint": _HUB_MODEL,
            "finetune.revision": commit,
            "finetune.freeze": "none" if gpu else "image_encoder",
            "finetune.learning_rate": "auto",
        },
    )


def _install_first() -> str:
    """Return what to do before the training if the CNN's weights are missing, else nothing."""
    from pipeline.models.cnn import encoder  # imports torch

    try:
        encoder.check_installed()
    except ConfigError:
        return f"first {encoder.INSTALL}; "
    return ""


def _new_folder(name: str) -> Path:
    """Return the source's folder, which does not exist yet."""
    check_name(name, "--name")
    folder = paths.RAW / name
    if folder.exists() or Path(f"{folder}.dvc").exists():
        raise ConfigError(
            f"{folder}: exists already; choose another --name, or add files there and run `dvc add {folder}`"
        )
    return folder


def _check(photos: Path, captions: Path | None) -> None:
    for path in (photos, captions):
        if path is not None and not path.exists():
            raise ConfigError(
                f"{path}: not found; name the folder or archive of your photos, and the table of captions"
            )
    if captions is not None and not captions.is_file():
        raise ConfigError(f"{captions}: is a folder; name the table of captions itself")
    if paths.RAW.resolve().is_relative_to(photos.resolve()):
        raise ConfigError(f"{photos}: contains this workspace's {paths.RAW}; name the folder of your photos alone")
    check_no_list(photos, *([captions] if captions else []))


def _copy(params: Params, photos: Path, captions: Path | None, folder: Path) -> int:
    """Copy the files, check that captions are among them, and return the number of files with those in archives."""
    columns = params.ingest.columns
    with swapped_in(folder) as (place,):
        if photos.is_dir():
            shutil.copytree(photos, place, symlinks=True)
        else:
            place.mkdir(parents=True)
            shutil.copy(photos, place)
        if captions is not None:
            shutil.copy(captions, place)
        try:
            with open_files(place) as files:
                find_captions_files(files, Columns(columns.picture, columns.caption))
                return len(files.members)
        except DataError as error:
            message = str(error).replace(str(place), str(photos))
            raise DataError(f"{message}; or name the table with --captions") from None


def _track(folder: Path) -> None:
    try:
        track(folder)
    except TemporaryError:
        remove(folder)
        raise


def _hub_commit() -> str | None:
    """Return the newest commit of git-base on the hub; None if the hub can't be reached."""
    from huggingface_hub import HfApi  # takes a second to import

    try:
        commit: str | None = HfApi().model_info(_HUB_MODEL, timeout=_HUB_SECONDS).sha
        return commit
    except Exception:  # including those of the HTTP library
        return None


def _has_gpu() -> bool:
    from pipeline.models.device import best_device  # torch takes seconds to import

    return best_device().type != "cpu"


def _set_params(values: Mapping[str, Any], reason: str) -> None:
    """Set params in `params.yaml`, with the reason as a comment; all other lines stay as they are."""
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    yaml.representer.add_representer(type(None), _null)
    content = yaml.load(paths.PARAMS.read_text(encoding="utf-8"))
    for key, value in values.items():
        *sections, last = key.split(".")
        section = content
        for name in sections:
            section = section[name]
        if isinstance(value, list):
            section[last][:] = value
        else:
            section[last] = value
    _comment(content["finetune"], "checkpoint", f"by `image-captioning init`: {reason}")
    place = paths.PARAMS.with_name(f"{paths.PARAMS.name}{PARTIAL}")
    with place.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)
    place.replace(paths.PARAMS)


def _comment(section: CommentedMap, key: str, words: str) -> None:
    """Set the comment behind a value; the lines of comments below it stay."""
    behind = section.ca.items.get(key)
    below = behind[2].value.partition("\n")[2] if behind and behind[2] else ""
    section.yaml_add_eol_comment(f"{words}\n{below}", key)


def _null(representer: Any, value: None) -> ScalarNode:
    node: ScalarNode = representer.represent_scalar("tag:yaml.org,2002:null", "null")
    return node
