"""Make a source of pictures that stay in a bucket, or list the bucket again.

`data/raw/NAME` gets the list of the bucket's objects (`bucket.jsonl`), and copies of the captions, which DVC versions.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.commands.new_source import check_name, track
from pipeline.config import paths
from pipeline.config.errors import ConfigError, DataError
from pipeline.config.params import Params
from pipeline.data.images import SUFFIXES
from pipeline.data.sources.archive import Files, open_files
from pipeline.data.sources.bucket_list import NAME, READERS, BucketList, Listed, read_list, write_list
from pipeline.data.sources.delimited import Columns
from pipeline.data.sources.layouts import find_captions_files
from pipeline.data.sources.member import ARCHIVES, MemberError, suffix
from pipeline.runtime.atomic_files import swapped_in
from pipeline.runtime.bucket import S3, Bucket, is_path
from pipeline.runtime.parallel_map import parallel_map
from pipeline.runtime.progress import progress_bar

_MAX_CAPTIONS_BYTES = 2**30  # of one file
_SHOWN = 3  # names of each kind of change


def add_bucket(params: Params, name: str, url: str | None, table: Path | None) -> str:
    """Make or refresh `data/raw/NAME`, let DVC track it, and return the last line to print.

    Args:
        params: of the workspace.
        name: of the source.
        url: `s3://BUCKET/PREFIX`; None for the one that the source has.
        table: the captions, if they are not in the bucket; None keeps those that the source has.

    Raises:
        ConfigError: the name is taken or wrong, or the bucket does not exist or denies access.
        DataError: the bucket has no pictures, or no captions are found.
        TemporaryError: the store can't be reached, or `dvc add` failed.
    """
    folder = paths.RAW / name
    said = list_bucket(params, name, url, table)
    track(folder)
    again = "" if name in params.ingest.sources else f"add {name} to ingest.sources in {paths.PARAMS}, then "
    return f"{said}; DVC tracks {folder} by {folder}.dvc; {again}`dvc repro` trains"


def list_bucket(params: Params, name: str, url: str | None, table: Path | None) -> str:
    """Do what `add_bucket` does without DVC, and return what the source has."""
    folder = paths.RAW / name
    old = _old_list(name, folder, table)
    url = url or (old.url if old else None)
    if url is None or not url.startswith(S3):
        raise ConfigError(f"{url or name}: is no bucket; name it s3://BUCKET/PREFIX")
    bucket = Bucket(url)
    objects = bucket.objects()
    pictures = sum(suffix(one) in SUFFIXES for one in objects)
    if not pictures:
        raise DataError(
            f"{url}: found {len(objects):,} objects, but no JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC or AVIF picture; name"
            " another prefix"
        )
    if table is not None and table.name in objects:
        raise ConfigError(f"{url}/{table.name}: is in the bucket too; rename {table}")
    listed = [Listed(one, size, etag) for one, (size, etag) in objects.items()]
    kept = old if old and old.url == bucket.url else None
    new = BucketList(
        bucket.url, table.name if table else old.table if old else None, _copied_before(folder, kept, listed)
    )
    with swapped_in(folder) as (place,):
        place.mkdir(parents=True)
        _copy_own(folder, place, old, new, table)
        with _other_errors(place, folder):
            new = _copy_captions(params, place, new)
        write_list(place, new)
    _print_changes(old.objects if old else [], new.objects)
    size = sum(one.size for one in new.objects if suffix(one.name) in SUFFIXES)
    archives = sum(suffix(one.name) in ARCHIVES for one in new.objects)
    if archives:
        print(f"add-bucket: {archives:,} archives are not read; unpack them in the bucket, or download them")
    copies = sum(one.copied for one in new.objects)
    captions = [f"{copies:,} captions files copied"] if copies else []
    captions += [f"captions in {new.table}"] if new.table else []
    return ", ".join([f"{folder} lists {pictures:,} pictures ({size / 1e6:,.1f} MB) in {new.url}", *captions])


def _old_list(name: str, folder: Path, table: Path | None) -> BucketList | None:
    check_name(name, "NAME")
    if table is not None and not table.is_file():
        raise ConfigError(f"{table}: not found; name the table of captions itself")
    if table is not None and table.name == NAME:
        raise ConfigError(f"{table}: has the name of the bucket's list; rename it")
    if not folder.exists():
        if Path(f"{folder}.dvc").exists():
            raise ConfigError(f"{folder}: is not here; run `dvc pull {folder}.dvc` first, or choose another name")
        return None
    old = read_list(folder)
    if old is None:
        raise ConfigError(f"{folder}: exists already, and is not in a bucket (it has no {NAME}); choose another name")
    return old


def _copied_before(folder: Path, old: BucketList | None, listed: Iterable[Listed]) -> list[Listed]:
    """Return the objects; those of whose present content the source has a copy are marked."""
    copies = {one[:3] for one in old.objects if one.copied and (folder / one.name).is_file()} if old else set()
    return [one._replace(copied=one[:3] in copies) for one in listed]


def _copy_own(folder: Path, place: Path, old: BucketList | None, new: BucketList, table: Path | None) -> None:
    """Copy to `place` what the source has and keeps: files that are not from the bucket, and current copies."""
    from_bucket = {one.name for one in old.objects if one.copied} if old else set()
    current = {one.name for one in new.objects if one.copied}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        outdated = name in from_bucket - current or (table is not None and old is not None and name == old.table)
        if path.is_file() and name != NAME and not outdated:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place / name)
    if table is not None:
        shutil.copy(table, place / table.name)
    for one in new.objects:
        if not one.copied and (place / one.name).is_file() and is_path(one.name):
            raise ConfigError(
                f"{new.url}/{one.name}: {folder.name} has a file of the same name that is not from the bucket; rename"
                " one of them"
            )


def _copy_captions(params: Params, place: Path, new: BucketList) -> BucketList:
    """Copy the captions files that are in the bucket to `place`, and return the list in which they are marked."""
    write_list(place, new)
    columns = params.ingest.columns
    with open_files(place) as files:
        found = [
            index
            for index in find_captions_files(files, Columns(columns.picture, columns.caption))
            if files.stamp(index) is not None
        ]
        copies = parallel_map(lambda index: _copy(files, index, place, new.url), found, READERS)
        done = set(progress_bar(copies, total=len(found), desc="captions", unit=" files"))
    return new._replace(objects=[one._replace(copied=one.copied or one.name in done) for one in new.objects])


def _copy(files: Files, index: int, place: Path, url: str) -> str:
    name = files.members[index].name
    try:
        data = files.read(index, _MAX_CAPTIONS_BYTES)
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    except MemberError as error:
        raise DataError(
            f"{url}/{name}: has captions, but can't be read ({error.reason}); rename or replace it"
        ) from None
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise DataError(f"{url}/{name}: another object is named like one of its folders; rename one of them") from None
    return name


@contextmanager
def _other_errors(place: Path, folder: Path) -> Iterator[None]:
    """Name the source instead of the place where it is made."""
    try:
        yield
    except DataError as error:
        message = str(error).replace(str(place), str(folder)).replace(place.name, folder.name)
        add = "" if "--captions" in message or "no captions" not in message else "; or name a table with --captions"
        raise DataError(f"{message}{add}") from None


def _print_changes(old: Iterable[Listed], new: Iterable[Listed]) -> None:
    before, after = {one.name: one.etag for one in old}, {one.name: one.etag for one in new}
    if not before:
        return
    kinds = {
        "added": [name for name in after if name not in before],
        "changed": [name for name in after if name in before and before[name] != after[name]],
        "removed": [name for name in before if name not in after],
    }
    if not any(kinds.values()):
        print("add-bucket: nothing has changed in the bucket")
    for kind, names in kinds.items():
        if names:
            more = ", ..." if len(names) > _SHOWN else ""
            print(f"add-bucket: {len(names):,} {kind}: {', '.join(map(ascii, names[:_SHOWN]))}{more}")
