"""From `finetune.checkpoint` to a folder: a registered version, a folder, or a name on the hub."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.sections.finetune import REGISTERED
from pipeline.models import factory
from pipeline.tracking import downloads


def locate(name: str, revision: str | None, cache_gb: float) -> Path:
    """Return the folder of a checkpoint, downloaded if necessary.

    Args:
        name: `models:/NAME/VERSION`, a folder, or a hub name.
        revision: the commit of a hub name.
        cache_gb: size limit of the cache of registered versions, see `runtime.model_cache_gb`.

    Raises:
        TemporaryError: the hub or MLflow is unreachable, and the checkpoint is not on this machine yet.
        ConfigError: the hub has no such checkpoint or commit, or MLflow no such version.
    """
    return downloads.checkpoint_of(name, cache_gb) if name.startswith(REGISTERED) else factory.locate(name, revision)
