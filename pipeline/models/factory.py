"""From a checkpoint's name to a `Checkpoint`: find its folder, read its `model_type`, load it with its architecture.

To add an architecture:
1. Write a package beside this module with a `CaptionModel` and an `Architecture` (see `pipeline/models/base.py`).
2. Add its `model_type` to `_ARCHITECTURES` below; code outside this project calls `register` instead.
3. To create models by a name in `finetune.checkpoint`, add the name to `CREATED` in
   `pipeline/config/sections/finetune.py`, and to `_STARTS` below.
4. Set `finetune.checkpoint` to that name or to a checkpoint's folder. `tests/models/test_factory.py` does this with a
   toy.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils import logging as transformers_logging

from pipeline.config.errors import ConfigError, PipelineError, TemporaryError
from pipeline.config.sections.finetune import CREATED, Scratch
from pipeline.models import checkpoint_files
from pipeline.models.base import Architecture, Checkpoint

# No pickled weights (*.bin, *.pt, *.ckpt): unpickling runs any code that the file contains.
_FILES = ["*.json", "*.txt", "*.safetensors"]


def _git() -> Architecture:
    # Imported on use, so that loading one architecture does not import the others.
    from pipeline.models.git.checkpoint import Git

    return Git()


def _recurrent(decoder: str | None = None) -> Architecture:
    from pipeline.models.cnn.checkpoint import Recurrent

    return Recurrent(decoder)


def _git_on_cnn(creates: bool = False) -> Architecture:
    from pipeline.models.cnn.checkpoint import GitOnCnn

    return GitOnCnn(creates)


_ARCHITECTURES: dict[str, Callable[[], Architecture]] = {
    "git": _git,
    "cnn-captioner": _recurrent,
    "cnn-git": _git_on_cnn,
}

# What creates the models that are named instead of a checkpoint.
_STARTS: dict[str, Callable[[], Architecture]] = {
    "scratch": _git,
    "cnn-attention": partial(_recurrent, "attention"),
    "cnn-lstm": partial(_recurrent, "lstm"),
    "cnn-rnn": partial(_recurrent, "rnn"),
    "cnn-git": partial(_git_on_cnn, creates=True),
}


def register(model_type: str, architecture: Callable[[], Architecture]) -> None:
    """Make an architecture available to `load` and `scratch` under its `model_type`."""
    _ARCHITECTURES[model_type] = architecture


def is_created(name: str) -> bool:
    """Return whether a checkpoint of this name is created on the spot, like `scratch` and `cnn-attention`."""
    return name in CREATED


def locate(name: str, revision: str | None, key: str = "finetune.checkpoint") -> Path:
    """Return the folder of a checkpoint: `name` itself if it is a folder, else the hub's copy.

    Args:
        name: a folder, or a name on the hub.
        revision: the commit of a hub name.
        key: the param that has the name, for messages.

    Raises:
        TemporaryError: the hub is unreachable, and the commit is not on this machine yet.
        ConfigError: the hub has no such checkpoint or commit, or the name is one of those that are created.
    """
    if is_created(name):
        raise ConfigError(f"params.yaml: {key}: {name} has no folder: it is created when training starts")
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError, HFValidationError) as error:
        raise ConfigError(
            f"params.yaml: {key}: the hub has no {name} at {revision} ({type(error).__name__});"
            " correct the name and `revision`"
        ) from None
    except Exception as error:  # including those of the HTTP library
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TemporaryError(
            f"params.yaml: {key}: {name} at {revision} is not on this machine and the hub can't be"
            f" reached ({type(error).__name__}); run again later, or download the checkpoint on another machine"
            f" (`hf download`) and set {key} to its folder"
        ) from None


def load(folder: Path) -> Checkpoint:
    """Load a checkpoint from a folder.

    Raises:
        ConfigError: the folder has no checkpoint of a known architecture with safetensors weights, it is damaged, or
            its parts do not fit each other.
    """
    model_type = _model_type(folder)
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"{folder}: has no .safetensors weights (pickled weights can run code, so they are not loaded);"
            " convert them on a machine that trusts them: `save_pretrained` writes safetensors"
        )
    if (folder / "adapter_config.json").exists():
        # transformers would load it silently, and a checkpoint saved later would have the adapter only.
        raise ConfigError(f"{folder}: has an adapter (adapter_config.json); merge it into the weights first")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # architectures check what it would warn about
    checkpoint_files.check_json_sizes(folder)
    try:
        checkpoint = _ARCHITECTURES[model_type]().load(folder)
        checkpoint_files.check_image_processor(folder, checkpoint)
        return checkpoint
    except PipelineError:
        raise
    except Exception as error:  # the libraries raise many kinds, down to the safetensors reader's own
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{folder}: can't be loaded as a {model_type} checkpoint: {type(error).__name__}: {reason};"
            " download or copy it again"
        ) from None


def scratch(sizes: Scratch, captions: Iterable[str], max_tokens: int, model_type: str = "git") -> Checkpoint:
    """Create a small model with random weights (torch's seed decides) and a tokenizer trained on `captions`."""
    return _ARCHITECTURES[model_type]().scratch(sizes, captions, max_tokens)


def create(name: str, sizes: Scratch, captions: Iterable[str], max_tokens: int) -> Checkpoint:
    """Create the model that `finetune.checkpoint` names; see `scratch`.

    Raises:
        ConfigError: the package with the weights of its image encoder is missing or damaged.
    """
    return _STARTS[name]().scratch(sizes, captions, max_tokens)


def self_check(start: Path | str, device: torch.device) -> None:
    """Check before training that the installed libraries compute what the checkpoint's architecture expects.

    Args:
        start: the checkpoint's folder, or a name that `create` takes.
        device: where it will be trained.

    Raises:
        ConfigError: they do not; names the library and its version.
    """
    architecture = _STARTS[start] if isinstance(start, str) else _ARCHITECTURES[_model_type(start)]
    architecture().self_check(device)


def _model_type(folder: Path) -> str:
    config_file = folder / "config.json"
    model_type = checkpoint_files.read_object(config_file).get("model_type")
    if not isinstance(model_type, str) or model_type not in _ARCHITECTURES:
        known = " or ".join(map(repr, _ARCHITECTURES))
        raise ConfigError(
            f"{config_file}: model_type is {str(model_type)[:80]!r}, not {known}; name a checkpoint of such a model,"
            " like microsoft/git-base"
        )
    return model_type
