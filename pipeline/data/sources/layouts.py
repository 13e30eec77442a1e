"""What people bring: the files of a folder below `data/raw` -> rows of captions, each naming its picture.

A source's layout is recognised by the names of its captions files, wherever they lie:

* `table`: `.csv` or `.tsv` with a header (`image,caption` and the like), and Kaggle's
  instagram-images-with-captions, whose second CSV has none
* `Flickr8k`: `captions.txt` (a CSV), as Kaggle has it
* `Flickr8k tokens`: `Flickr8k.token.txt` (`name.jpg#0<TAB>caption`), as the authors had it; Flickr30k's too
* `imagefolder`: `metadata.jsonl` or `metadata.csv` (`file_name`, and `text`, `caption` or `captions`)
* `COCO`: `captions_*.json`
* `Karpathy`: `dataset_*.json`
* `Instagram export`: `posts_1.json`, as Instagram gives people their own posts

A source has one layout, but may have several files of it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config.errors import DataError
from pipeline.data.dataset import Row
from pipeline.data.sources.archive import Files, Member, MemberError
from pipeline.data.sources.tables import decode, read_table

_CAPTIONS_BYTES = 2**30

# Which names tell a captions file of which layout; the first that fits counts.
_LAYOUTS = {
    "imagefolder": re.compile(r"metadata\.(jsonl|csv)"),
    "COCO": re.compile(r"captions_.*\.json"),
    "Karpathy": re.compile(r"dataset_.*\.json"),
    "Instagram export": re.compile(r"posts_\d+\.json"),
    "Flickr8k tokens": re.compile(r"(flickr8k|results_\d+)\.token(\.txt)?"),
    "Flickr8k": re.compile(r"captions\.txt"),
    "table": re.compile(r".*\.[ct]sv"),
}
_EXPECTED = (
    "a .csv with the columns `image` and `caption`, captions.txt or Flickr8k.token.txt, metadata.jsonl or metadata.csv,"
    " captions_*.json (COCO), dataset_*.json (Karpathy), or posts_1.json (an Instagram export)"
)


@dataclass(frozen=True)
class CaptionRow:
    """A caption, and the picture that it names.

    Attributes:
        picture: as it stands there; None where the row is malformed.
        caption: the text, and where it stands.
        folder: in which its captions file lies ("" at the top of a zip or of the source).
        post: tells the post that shows several pictures with one caption; None for a picture of its own.
    """

    picture: str | None
    caption: Row
    folder: str
    post: int | None = None


@dataclass(frozen=True)
class CaptionFile:
    """A captions file that was read: where, of which layout, encoded how, and its rows."""

    place: str
    layout: str
    encoding: str
    rows: Iterator[CaptionRow]


@dataclass(frozen=True)
class _Raw:
    """A captions file's bytes, with what its rows and messages need to say where they are from."""

    data: bytes
    place: str  # for messages, from the root of the workspace
    file: str  # for the account, from the source's folder
    folder: str


def is_resource_fork(member: Member) -> bool:
    """Whether a file is what macOS leaves in zips beside the real one: it has its name, but not its content."""
    return member.base.startswith("._") or "__MACOSX/" in member.name


def caption_files(files: Files) -> dict[int, str]:
    """The captions files among the members: index -> layout.

    Raises:
        DataError: there is none, or they are of several layouts; lists what was seen.
    """
    found = {}
    for index, member in enumerate(files.members):
        layout = _layout(member.base.lower())
        if layout and not is_resource_fork(member):
            found[index] = layout
    if not found:
        raise DataError(f"{files.folder}: found {_seen(files.members)}, but no captions; expected {_EXPECTED}")
    if len(set(found.values())) > 1:
        seen = ", ".join(f"{files.members[index].place} ({layout})" for index, layout in list(found.items())[:8])
        raise DataError(
            f"{files.folder}: could be of several layouts: {seen}; leave the captions files of one, and bring the"
            " others as sources of their own"
        )
    return found


def _layout(base: str) -> str | None:
    if not base.endswith((".json", ".jsonl", ".csv", ".tsv", ".txt", ".token")):  # most are pictures
        return None
    return next((layout for layout, pattern in _LAYOUTS.items() if pattern.fullmatch(base)), None)


def _seen(members: list[Member]) -> str:
    if not members:
        return "nothing"
    kinds: dict[str, list[str]] = {}
    for member in members:
        kinds.setdefault(member.suffix or "no suffix", []).append(member.place)
    most = sorted(kinds.items(), key=lambda kind: -len(kind[1]))[:6]
    return ", ".join(f"{len(places):,} {suffix} (like {places[0]})" for suffix, places in most)


def read_captions(files: Files, index: int, layout: str) -> CaptionFile:
    """Read one captions file.

    Raises:
        DataError: it can't be read, or is not what its layout asks for; names the file and the row.
            (Rows are read as they are asked for, so this may come from the iterator, too.)
    """
    member = files.members[index]
    place = f"{files.folder / member.archive}:{member.name}" if member.archive else str(files.folder / member.name)
    try:
        data = files.read(index, _CAPTIONS_BYTES)
    except MemberError as error:
        raise DataError(f"{place}: can't be read ({error.reason}); download or make the archive again") from None
    raw = _Raw(data, place, member.place, member.name.rpartition("/")[0])
    if layout in ("table", "Flickr8k") or (layout == "imagefolder" and member.name.lower().endswith(".csv")):
        table = read_table(data, place)
        rows = (
            CaptionRow(fields[0] if fields else None, Row(fields[1] if fields else "", raw.file, number), raw.folder)
            for number, fields in table.rows
        )
        return CaptionFile(member.place, layout, f"{table.encoding}, {table.delimiter}", rows)
    text, encoding = decode(data, place)
    return CaptionFile(member.place, layout, encoding, map(_storable, _READERS[layout](text, raw)))


def _tokens(text: str, raw: _Raw) -> Iterator[CaptionRow]:
    """Flickr8k's own: `1000268201_693b08cb0e.jpg#0<TAB>A child in a pink dress .`."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        name, tab, caption = line.partition("\t")
        picture = name.rpartition("#")[0] if tab else None
        yield CaptionRow(picture or None, Row(caption, raw.file, number), raw.folder)


def _imagefolder(text: str, raw: _Raw) -> Iterator[CaptionRow]:
    """A JSON object a line: `file_name`, and a caption in `text` or `caption`, or several in `captions`."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        value = _json(line, f"{raw.place}: line {number}")
        picture = value.get("file_name") if isinstance(value, dict) else None
        found = next((value[key] for key in ("captions", "caption", "text") if key in value), "") if picture else ""
        # A list with nothing in it is a row with an empty caption: it came in, so it is counted.
        for caption in (found or [""]) if isinstance(found, list) else [found]:
            yield _row(picture, caption, raw, number)


def _coco(text: str, raw: _Raw) -> Iterator[CaptionRow]:
    """COCO's: `images` (`id`, `file_name`) and `annotations` (`image_id`, `caption`); rows are annotations."""
    value = _json(text, raw.place)
    images, annotations = (_list(value, key, raw.place) for key in ("images", "annotations"))
    names = {}
    for image in images:
        if isinstance(image, dict) and isinstance(image.get("id"), int | str):
            names[image["id"]] = image.get("file_name")
    for number, annotation in enumerate(annotations, start=1):
        known = isinstance(annotation, dict) and isinstance(annotation.get("image_id"), int | str)
        # An id that no image has names a picture that is not there.
        name = names.get(annotation["image_id"], f"image_id {annotation['image_id']}") if known else None
        yield _row(name, annotation.get("caption") if known else None, raw, number)


def _karpathy(text: str, raw: _Raw) -> Iterator[CaptionRow]:
    """Karpathy's: `images` (`filepath`, `filename`, `sentences` with `raw`); rows are images."""
    for number, image in enumerate(_list(_json(text, raw.place), "images", raw.place), start=1):
        usable = isinstance(image, dict) and isinstance(image.get("filename"), str)
        sentences = image.get("sentences") if usable else None
        if not isinstance(sentences, list):
            yield _row(None, None, raw, number)
            continue
        above = image.get("filepath")
        name = f"{above}/{image['filename']}" if above and isinstance(above, str) else image["filename"]
        for sentence in sentences or [{"raw": ""}]:
            yield _row(name, sentence.get("raw") if isinstance(sentence, dict) else None, raw, number)


def _instagram(text: str, raw: _Raw) -> Iterator[CaptionRow]:
    """Instagram's export: posts with `media` (`uri`, `title`) and, where there are several, a `title` of their own.

    Rows are posts. Each picture of a post carries the post's caption. Paths start at the top of the export.
    """
    value = _json(text, raw.place)
    if not isinstance(value, list):
        raise DataError(f"{raw.place}: is no list of posts; bring the export as Instagram made it, in the format JSON")
    for number, post in enumerate(value, start=1):
        media = post.get("media") if isinstance(post, dict) else None
        if not isinstance(media, list) or not media:
            yield _row(None, None, raw, number)
            continue
        titles = [item.get("title") for item in media if isinstance(item, dict)]
        title = next((t for t in (post.get("title"), *titles) if t and isinstance(t, str)), "")
        for item in media:
            own = item.get("uri") if isinstance(item, dict) else None
            row = _row(unescape_latin1(own) if isinstance(own, str) else None, unescape_latin1(title), raw, number)
            yield replace(row, folder="", post=number if len(media) > 1 else None)


_READERS: dict[str, Callable[[str, _Raw], Iterable[CaptionRow]]] = {
    "Flickr8k tokens": _tokens,
    "imagefolder": _imagefolder,
    "COCO": _coco,
    "Karpathy": _karpathy,
    "Instagram export": _instagram,
}


def unescape_latin1(text: str) -> str:
    r"""Repair text whose UTF-8 bytes were written as if each were a letter, as Instagram's export does.

    Only where every letter may be such a byte, and all together are UTF-8: else it is as it should be.

    >>> unescape_latin1("caf\u00c3\u00a9"), unescape_latin1("caf\u00e9")
    ('café', 'café')
    """
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _row(picture: object, caption: object, raw: _Raw, number: int) -> CaptionRow:
    usable = isinstance(picture, str) and isinstance(caption, str)
    return CaptionRow(
        picture=str(picture).strip() if usable else None,
        caption=Row(str(caption) if usable else "", raw.file, number),
        folder=raw.folder,
    )


def _storable(row: CaptionRow) -> CaptionRow:
    r"""JSON can spell halves of letters ("\ud83d" alone), which no file can hold: they become U+FFFD."""

    def whole(text: str) -> str:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    if row.caption.text.isascii() and (row.picture or "").isascii():
        return row
    caption = replace(row.caption, text=whole(row.caption.text))
    return replace(row, caption=caption, picture=row.picture and whole(row.picture))


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: is no JSON ({error}); bring it again") from None


def _list(value: object, key: str, place: str) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise DataError(f"{place}: has no list `{key}`; bring the file as its data set has it")
    return found


class PictureIndex:
    """Finds the picture that a captions row names, among the pictures of a source.

    A row may give the path from the top or from the captions file's folder, the end of that path, or the bare file
    name; each with or without its suffix. A name that agrees to the letter goes before one that agrees but for how
    accents are composed, and that before one that agrees but for upper and lower case.
    """

    def __init__(self, pictures: dict[int, Member]) -> None:
        self._paths = {index: member.name.replace("\\", "/") for index, member in pictures.items()}
        self._by_name: dict[str, set[int]] = {}
        for index, path in self._paths.items():
            name = _fold(path.rpartition("/")[2])
            for key in (name, _stem(name)):
                self._by_name.setdefault(key, set()).add(index)

    def find(self, picture: str, folder: str) -> set[int]:
        """The indices of the members that `picture` may mean: one, none, or several where it is ambiguous."""
        wanted = picture.replace("\\", "/").removeprefix("./")
        candidates = self._by_name.get(_fold(wanted.rpartition("/")[2]), set())
        here = f"{folder}/{wanted}" if folder else wanted
        for fold in (str, _composed, _fold):
            for whole in (here, wanted):
                if found := {i for i in candidates if fold(whole) in _both(fold(self._paths[i]))}:
                    return found
            end = f"/{fold(wanted)}"
            if found := {i for i in candidates if any(path.endswith(end) for path in _both(fold(self._paths[i])))}:
                return found
        return set()


def _composed(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _fold(path: str) -> str:
    return _composed(_composed(path).casefold())


def _stem(path: str) -> str:
    return path.rpartition(".")[0]


def _both(path: str) -> tuple[str, str]:
    return path, _stem(path)
