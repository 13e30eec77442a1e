"""The memory of validation and test: `data/dataset/held_out.jsonl` lists every picture that was ever in one of them.

`build` reads the list of its last run, so that no picture on it ever goes to train, whatever happens to the sources. It
is part of the data set, so DVC versions it together with the splits that it explains. The first line has the params
that the splits depend on; if they change, all pictures are assigned anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.config import paths
from pipeline.config.errors import DataError
from pipeline.data.dataset import IngestedPicture, read_examples
from pipeline.data.near_duplicates import Fingerprints, find_near_duplicates
from pipeline.data.split import HELD_OUT, furthest_from_training
from pipeline.runtime.atomic_files import read_json_lines, write_json_lines

_FILE = "held_out.jsonl"


@dataclass
class HeldOut:
    """Pictures that were in validation or test.

    Attributes:
        params: the params that the splits depend on.
        splits: SHA-256 -> `validation` or `test`.
        fingerprints: SHA-256 -> perceptual hash and thumbnail (both hexadecimal), to recognise a picture that its
            source has saved again.
        params_before: the params of the last run, if they were different, so that its list does not count.
    """

    params: Mapping[str, Any]
    splits: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, tuple[str, str]] = field(default_factory=dict)
    params_before: Mapping[str, Any] | None = None

    def splits_of(self, pictures: Iterable[IngestedPicture], max_bits: int) -> dict[str, str]:
        """Return the remembered split of each of `pictures` that has one: SHA-256 -> split.

        A picture that is not remembered has the split of a remembered near-duplicate that the sources no longer
        contain: it is probably the same picture, saved again.

        Args:
            pictures: all pictures of today's data set.
            max_bits: see `find_near_duplicates`.
        """
        pictures = list(pictures)
        today = {picture.sha256 for picture in pictures}
        found = {sha256: split for sha256, split in self.splits.items() if sha256 in today}
        new = [picture for picture in pictures if picture.sha256 not in self.splits]
        prints = _fingerprints((picture.phash, picture.thumbnail) for picture in new)
        for split in HELD_OUT:  # test last, because it has priority
            gone = [print_ for sha256, print_ in self.fingerprints.items() if self._is_gone(sha256, split, today)]
            for index in find_near_duplicates(prints, _fingerprints(gone), max_bits):
                found[new[index].sha256] = split
        return found

    def _is_gone(self, sha256: str, split: str, today: set[str]) -> bool:
        return sha256 not in today and self.splits[sha256] == split

    def add(self, picture: IngestedPicture, split: str) -> None:
        """Remember a picture of validation or test."""
        self.splits[picture.sha256] = furthest_from_training([split, self.splits.get(picture.sha256, split)])
        self.fingerprints[picture.sha256] = picture.phash, picture.thumbnail

    def write(self, folder: Path) -> None:
        """Write the list to `folder`, sorted by SHA-256."""
        lines: list[dict[str, Any]] = [dict(self.params)]
        for sha256, split in sorted(self.splits.items()):
            phash, thumbnail = self.fingerprints.get(sha256, ("", ""))
            lines.append({"sha256": sha256, "split": split, "phash": phash, "thumbnail": thumbnail})
        write_json_lines(folder / _FILE, lines)


def read_held_out(folder: Path, params: Mapping[str, Any]) -> HeldOut:
    """Return the list of the last run in `folder`, or an empty one if it is missing or its params were different.

    A data set of an older version of this project has no list; then its validation and test splits are the list.

    Raises:
        DataError: DVC has recorded a data set, but it is not there.
    """
    if not folder.is_dir():
        _check_not_lost()
        return HeldOut(params)
    if not (folder / _FILE).is_file():
        splits = {
            example.sha256: split
            for split in HELD_OUT
            if (folder / split).is_dir()
            for example in read_examples(folder / split)
        }
        return HeldOut(params, splits)
    lines = read_json_lines(folder / _FILE)
    params_before = next(lines)
    if params_before != params:
        return HeldOut(params, params_before=params_before)
    held_out = HeldOut(params)
    for line in lines:
        held_out.splits[line["sha256"]] = line["split"]
        if line["phash"]:
            held_out.fingerprints[line["sha256"]] = line["phash"], line["thumbnail"]
    return held_out


def _check_not_lost() -> None:
    """Check that no data set is missing: without its list, pictures could move from test to train unnoticed."""
    if not paths.DVC_LOCK.is_file():
        return
    stages = YAML(typ="safe", pure=True).load(paths.DVC_LOCK.read_text(encoding="utf-8")).get("stages", {})
    if any(Path(out["path"]) == paths.DATASET for out in stages.get("build", {}).get("outs", [])):
        raise DataError(
            f"{paths.DATASET}: not found, although {paths.DVC_LOCK} records it; run `dvc checkout {paths.DATASET}` or"
            f" `dvc pull {paths.DATASET}`, so that no test picture moves to train (to assign all pictures anew, create"
            " the empty folder)"
        )


def _fingerprints(pictures: Iterable[tuple[str, str]]) -> Fingerprints:
    return Fingerprints.of([(int(phash, 16), bytes.fromhex(thumbnail)) for phash, thumbnail in pictures])
