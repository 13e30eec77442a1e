"""No picture that was once in validation or test moves to train, whatever happens to the sources."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline import build, ingest
from pipeline.config import params
from pipeline.config.errors import DataError
from pipeline.data.dataset import read_examples
from pipeline.data.images import identity
from pipeline.data.split import HELD_OUT, SPLITS, assign_splits, split_of
from pipeline.runtime.atomic_files import sha256_of
from pipeline.serving.corrections import Corrections
from tests.conftest import set_params
from tests.test_build import photo


@cache
def saved(picture: int, quality: int) -> bytes:
    return photo(picture, quality, (64, 48))


@cache
def shas(picture: int) -> set[str]:
    return {identity(saved(picture, quality)) for quality in QUALITIES}


QUALITIES = (92, 70)
PICTURES = 16


@dataclass
class Source:
    """An Instagram export: posts of several pictures, and the files that are there.

    Attributes:
        posts: the names of each post's pictures, in order.
        files: name -> picture, JPEG quality, and whether the file is intact.
    """

    posts: list[list[str]] = field(default_factory=list)
    files: dict[str, tuple[int, int, bool]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "media").mkdir(parents=True)
        posts = [{"title": f"post {k}", "media": [{"uri": n} for n in post]} for k, post in enumerate(self.posts)]
        (folder / "posts_1.json").write_text(json.dumps(posts))
        for name, (picture, quality, intact) in self.files.items():
            (folder / name).write_bytes(saved(picture, quality)[: None if intact else 300])


def write_corrections(folder: Path, corrected: list[tuple[int, int]]) -> None:
    """Write people's captions of pictures, each in one JPEG quality, as the web page saves them."""
    shutil.rmtree(folder, ignore_errors=True)
    corrections = Corrections(folder, folder.with_name("lock"))
    for picture, quality in corrected:
        corrections.save("ann", "add", saved(picture, quality), caption=f"her words for picture {picture}")
    folder.with_name("lock").unlink(missing_ok=True)


def change(sources: dict[str, Source], kind: str, draw: Callable[[int], int], serial: int) -> None:
    """Change the sources as their owners do; `draw(n)` draws a number below n."""
    source = sources[sorted(sources)[draw(len(sources))]]
    if kind == "add":
        post = []
        for k in range(1 + draw(4)):
            post.append(f"media/{serial}-{k}.jpg")
            if draw(4):  # else the file comes later, or never
                source.files[post[-1]] = draw(PICTURES), QUALITIES[draw(2)], draw(6) > 0
        source.posts.append(post)
    elif kind == "arrive":
        missing = [name for post in source.posts for name in post if name not in source.files]
        for name in missing[: 1 + draw(2)]:
            source.files[name] = draw(PICTURES), QUALITIES[draw(2)], True
    elif kind == "remove post" and source.posts:
        source.posts.pop(draw(len(source.posts)))
    elif kind == "remove first item" and source.posts:
        post = source.posts[draw(len(source.posts))]
        del post[: 1 if len(post) > 1 else 0]
    elif kind == "remove file" and source.files:
        del source.files[sorted(source.files)[draw(len(source.files))]]
    elif kind in ("damage", "repair", "save again", "rename file") and source.files:
        name = sorted(source.files)[draw(len(source.files))]
        picture, quality, intact = source.files.pop(name)
        if kind == "save again":
            quality = QUALITIES[draw(2)]
        new = f"media/renamed-{serial}.jpg" if kind == "rename file" else name
        source.posts = [[new if n == name else n for n in post] for post in source.posts]
        source.files[new] = picture, quality, kind == "repair" or (intact and kind != "damage")
    elif kind == "reverse" and source.posts:
        source.posts[draw(len(source.posts))].reverse()
    elif kind == "split" and len(sources) < 4:
        middle = draw(len(source.posts) + 1)
        copied = dict(source.files) if draw(2) else dict(list(source.files.items())[::2])
        sources[f"part{serial}"] = Source([list(post) for post in source.posts[middle:]], copied)
        del source.posts[middle:]
    elif kind == "merge" and len(sources) > 1:
        other = sources.pop(sorted(sources)[draw(len(sources))])
        if not sources:
            sources["merged"] = source
        if other is not source:
            source.posts += other.posts
            source.files |= other.files
    elif kind == "rename source":
        (name,) = [name for name, one in sources.items() if one is source]
        sources[f"z{serial}"] = sources.pop(name)


KINDS = [
    *("add", "add", "add", "arrive", "remove post", "remove first item", "remove file", "damage", "repair"),
    *("save again", "rename file", "reverse", "split", "merge", "rename source"),
]


def run_build(
    workspace: Path, sources: dict[str, Source], corrected: list[tuple[int, int]] | None = None
) -> dict[str, str] | None:
    """Ingest and build the sources; return the split of each picture, or None if a source has no usable picture."""
    shutil.rmtree(workspace / "data/raw", ignore_errors=True)
    for name, source in sources.items():
        source.write(workspace / "data/raw" / name)
    names = sorted(sources)
    if corrected:
        write_corrections(workspace / "data/raw/corrections", corrected)
        names.append("corrections")
    set_params(workspace, {"ingest.sources": names})
    loaded = params.load()
    try:
        for name in names:
            ingest.run(loaded, Namespace(source=name))
        build.run(loaded, Namespace())
    except DataError:
        return None
    return {e.sha256: split for split in SPLITS for e in read_examples(workspace / "data/dataset" / split)}


def check_history(workspace: Path, data: st.DataObject) -> None:
    for folder in ("data", "reports"):
        shutil.rmtree(workspace / folder, ignore_errors=True)
    set_params(
        workspace, {"ingest.max_set_aside": 1.0, "ingest.exclude": [], "build.validation": 0.2, "build.test": 0.25}
    )

    def draw(count: int) -> int:
        return data.draw(st.integers(0, count - 1))

    sources = {"one": Source()}
    for k in range(6):  # so that no split is empty
        change(sources, "add", draw, k)
    ever: dict[str, str] = {}  # SHA-256 -> a split that the picture was in
    corrected: list[tuple[int, int]] = []
    for serial in range(6, 14):
        now = run_build(workspace, sources, corrected)
        if now is not None:
            moved = {sha256: ever[sha256] for sha256, split in now.items() if split == "train" and sha256 in ever}
            assert not moved, f"{moved} moved to train"
            for sha256, split in now.items():
                if split in HELD_OUT:
                    for same in next(shas(k) for k in range(PICTURES) if sha256 in shas(k)):
                        ever[same] = split  # also if it is saved again
        for _ in range(1 + draw(2)):
            change(sources, KINDS[draw(len(KINDS))], draw, serial)
        if not draw(3):
            corrected.append((draw(PICTURES), QUALITIES[draw(2)]))
        elif corrected and not draw(4):
            corrected.pop(draw(len(corrected)))


# Shrinking would run hundreds of builds.
_HISTORIES: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.explicit, Phase.reuse, Phase.generate],
}


@settings(max_examples=12, **_HISTORIES)
@given(st.data())
def test_no_history_of_the_sources_moves_a_picture_to_train(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr(build, "_check_not_empty", lambda kept, params: None)
    check_history(workspace, data)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@settings(max_examples=500, **_HISTORIES)
@given(st.data())
def test_500_histories_of_the_sources_move_no_picture_to_train(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr(build, "_check_not_empty", lambda kept, params: None)
    check_history(workspace, data)


def pictures_in(split: str) -> list[int]:
    """Return pictures whose own bytes give this split at the default fractions."""
    return [k for k in range(200) if split_of(identity(saved(k, 92)), 0.1, 0.15) == split]


def carousels(first: list[int], others: list[int]) -> Source:
    """Return an export of posts of two pictures, and single pictures that fill the splits."""
    source = Source()
    for k, pair in enumerate(zip(first, others, strict=True)):
        source.posts.append([f"media/{k}-{place}.jpg" for place in range(2)])
        source.files |= {f"media/{k}-{place}.jpg": (picture, 92, True) for place, picture in enumerate(pair)}
    for split in SPLITS:
        source.posts.append([f"media/{split}.jpg"])
        source.files[f"media/{split}.jpg"] = pictures_in(split)[-1], 92, True
    return source


def test_a_carousel_whose_first_picture_arrives_later_stays_out_of_train(workspace: Path) -> None:
    first, others = pictures_in("train")[:5], pictures_in("test")[:5]
    source = carousels(first, others)
    late = {f"media/{k}-0.jpg": source.files.pop(f"media/{k}-0.jpg") for k in range(5)}
    before = run_build(workspace, {"me": source})
    source.files |= late
    after = run_build(workspace, {"me": source})
    assert before is not None
    assert after is not None
    assert [before[identity(saved(k, 92))] for k in others] == ["test"] * 5
    assert [after[identity(saved(k, 92))] for k in first + others] == ["test"] * 10


def test_a_test_picture_that_is_saved_again_stays_out_of_train(workspace: Path) -> None:
    """Its new bytes would put it into train."""
    picture = next(k for k in pictures_in("test") if split_of(identity(saved(k, 70)), 0.1, 0.15) == "train")
    source = carousels([], [])
    source.posts.append(["media/again.jpg"])
    source.files["media/again.jpg"] = picture, 92, True
    run_build(workspace, {"me": source})
    source.files["media/again.jpg"] = picture, 70, True
    after = run_build(workspace, {"me": source})
    assert after is not None
    assert after[identity(saved(picture, 70))] == "test"


def test_a_corrected_test_picture_stays_out_of_train_if_a_post_shows_it_later(workspace: Path) -> None:
    """As a correction it follows its own hash, and in a post of another source the hash of the post's first picture."""
    (first, _), (corrected, other) = pictures_in("train")[:2], pictures_in("test")[:2]
    source = carousels([], [])
    before = run_build(workspace, {"me": source}, [(corrected, 92)])
    source.posts.append([f"media/late-{k}.jpg" for k in range(2)])
    source.files |= {"media/late-0.jpg": (first, 92, True), "media/late-1.jpg": (corrected, 92, True)}
    after = run_build(workspace, {"me": source}, [(corrected, 92)])
    without = run_build(workspace, {"me": source})
    again = run_build(workspace, {"me": source}, [(other, 92)])
    assert before is not None
    assert before[identity(saved(corrected, 92))] == "test"
    for now in (after, without, again):
        assert now is not None
        assert [now[identity(saved(k, 92))] for k in (first, corrected)] == ["test", "test"]
    shutil.rmtree(workspace / "data/dataset")  # without the memory the post would take it to train
    (workspace / "data/dataset").mkdir()
    forgotten = run_build(workspace, {"me": source}, [(corrected, 92)])
    assert forgotten is not None
    assert forgotten[identity(saved(corrected, 92))] == "train"


def test_the_same_data_give_the_same_data_set_with_and_without_a_last_run(workspace: Path) -> None:
    source = carousels(pictures_in("train")[:3] + pictures_in("test")[:3], pictures_in("validation")[:6])
    run_build(workspace, {"me": source})
    first = sha256_of(workspace / "data/dataset", workspace / "reports")
    run_build(workspace, {"me": source})
    assert sha256_of(workspace / "data/dataset", workspace / "reports") == first


def test_other_fractions_assign_all_pictures_anew_and_say_so(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = carousels(pictures_in("test")[:3], pictures_in("train")[:3])
    run_build(workspace, {"me": source})
    set_params(workspace, {"build.test": 0, "build.validation": 0})
    after = run_build(workspace, {"me": source})
    assert after is not None
    assert set(after.values()) == {"train"}
    assert "all pictures are assigned anew" in capsys.readouterr().out


def test_a_data_set_of_an_older_version_is_remembered_too(workspace: Path) -> None:
    source = carousels(pictures_in("test")[:3], pictures_in("train")[:3])
    run_build(workspace, {"me": source})
    (workspace / "data/dataset/held_out.jsonl").unlink()
    del source.posts[:3]
    source.posts += [[f"media/{k}-1.jpg"] for k in range(3)]
    after = run_build(workspace, {"me": source})
    assert after is not None
    assert [after[identity(saved(k, 92))] for k in pictures_in("train")[:3]] == ["test"] * 3


def test_a_lost_data_set_stops_the_build_and_a_killed_run_loses_none(workspace: Path) -> None:
    source = carousels([], [])
    run_build(workspace, {"me": source})
    lock = "stages:\n  build:\n    outs:\n    - path: data/dataset\n      md5: 0\n"
    (workspace / "dvc.lock").write_text(lock)
    dataset = workspace / "data/dataset"
    dataset.rename(dataset.with_name(".dataset.replaced"))  # what a run leaves that is killed between two renames
    build.run(params.load(), Namespace())
    assert (dataset / "held_out.jsonl").is_file()
    shutil.rmtree(dataset)
    with pytest.raises(DataError, match=r"data/dataset: not found, although dvc\.lock records it.*dvc checkout"):
        build.run(params.load(), Namespace())


def test_pictures_of_a_post_stay_together_if_one_of_them_is_remembered() -> None:
    a, b, logo, c = (f"{k:x}" * 64 for k in (15, 14, 13, 12))
    posts = {a: frozenset({a}), b: frozenset({a}), c: frozenset({c}), logo: frozenset({a, c})}
    assert set(assign_splits(posts, {}, 0.1, 0.1).values()) == {"train"}
    assert assign_splits(posts, {b: "test"}, 0.1, 0.1) == {a: "test", b: "test", c: "train", logo: "test"}
    # A picture that several posts show, like a logo, does not pull all of them to test.
    assert assign_splits(posts, {logo: "test"}, 0.1, 0.1) == {a: "train", b: "train", c: "train", logo: "test"}
