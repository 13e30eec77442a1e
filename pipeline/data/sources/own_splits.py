"""The splits that a published data set comes with, by the names that data sets give them."""

from __future__ import annotations

_NAMES = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_named(name: object) -> str | None:
    """Return `train`, `validation` or `test` for a data set's own name of it; None for any other value.

    >>> split_named("val"), split_named("restval"), split_named("train2017"), split_named("holiday")
    ('validation', 'train', 'train', None)
    """
    return _NAMES.get(name.strip().lower().rstrip("0123456789")) if isinstance(name, str) else None


def split_in_path(path: str) -> str | None:
    """Return the split that the last folder or zip of this kind in a path names, or None.

    >>> split_in_path("birds/train/img/1.jpg"), split_in_path("test.zip:1.jpg"), split_in_path("train.jpg")
    ('train', 'test', None)
    """
    folders = path.replace("\\", "/").replace(".zip:", "/").split("/")[:-1]
    return next((split for folder in reversed(folders) if (split := split_named(folder))), None)
