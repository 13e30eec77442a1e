"""Corrections survive kills, full disks and concurrent writers, and become training data by the documented rules."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import build, ingest
from pipeline.config import params
from pipeline.config.errors import DataError, TemporaryError
from pipeline.data.dataset import Example, read_examples
from pipeline.data.split import SPLITS
from pipeline.runtime.atomic_files import read_json
from pipeline.runtime.memory_budget import MemoryBudget
from pipeline.serving import journal
from pipeline.serving.corrections import Corrections, Said
from pipeline.synthetic.sample import write_sample
from tests.conftest import ROOT, jpeg, set_params
from tests.test_build import photo

RED, BLUE = jpeg("red"), jpeg("blue", (50, 60))


def sha(picture: bytes) -> str:
    return hashlib.sha256(picture).hexdigest()


@pytest.fixture
def corrections(tmp_path: Path) -> Corrections:
    return Corrections(tmp_path / "corrections", tmp_path / "lock")


def test_a_correction_is_a_line_beside_its_picture(corrections: Corrections) -> None:
    saved = corrections.save("ann", "edit", RED, caption=" a red\npage ", said=Said("a blue page", "toy", 3))
    (line,) = (corrections.folder / "corrections.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "id": saved.id,
        "at": saved.at,
        "who": "ann",
        "action": "edit",
        "sha256": sha(RED),
        "picture": f"pictures/{sha(RED)}.jpg",
        "caption": "a red page",
        "said": "a blue page",
        "model": "toy",
        "version": 3,
    }
    assert (corrections.folder / saved.picture).read_bytes() == RED
    assert corrections.picture(saved) == RED
    assert corrections.read() == [saved]


def test_a_picture_is_checked_under_the_memory_budget(tmp_path: Path) -> None:
    budget = MemoryBudget(10**6)
    corrections = Corrections(tmp_path / "corrections", tmp_path / "lock", budget=budget)
    with ThreadPoolExecutor(1) as pool:
        with budget.reserve(budget.total):
            saving = pool.submit(corrections.save, "ann", "add", RED, caption="a red page")
            with pytest.raises(TimeoutError):
                saving.result(timeout=0.3)
            assert not corrections.folder.exists()
        assert saving.result(timeout=30).caption == "a red page"


def test_a_repeated_save_is_one_correction_but_other_people_count(corrections: Corrections) -> None:
    first = corrections.save("ann", "add", RED, caption="a page", key="k")
    assert corrections.save("ann", "add", RED, caption="something else", key="k") == first
    assert corrections.save("ann", "add", RED, caption="a  page") == first
    corrections.save("bob", "add", RED, caption="a page")
    corrections.undo(first)
    corrections.undo(first)
    again = corrections.save("ann", "add", RED, caption="a page")
    assert again.id != first.id
    assert [one.action for one in corrections.read()] == ["add", "add", "undo", "add"]
    assert [one.who for one in corrections.counting()] == ["bob", "ann"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"caption": "x" * 10_000}, "10,000 characters; shorten it"),
        ({"caption": " \n"}, "caption is empty"),
        ({"caption": "a", "who": "  "}, "name is empty"),
        ({"caption": "a", "picture": b"GIF8 not a picture"}, "save it as JPEG or PNG"),
        ({"caption": "a", "picture": jpeg("red", (900, 900))[:-2_000]}, "cut off or damaged"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    corrections: Corrections, arguments: dict, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        corrections.save(**{"who": "ann", "action": "edit", "picture": RED, **arguments})
    assert not corrections.folder.exists()


def test_a_full_disk_saves_nothing_and_a_retry_succeeds(
    corrections: Corrections, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = corrections.save("ann", "add", RED, caption="one")
    before = (corrections.folder / "corrections.jsonl").read_bytes()

    def half(file: BinaryIO, data: bytes) -> None:
        file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    for picture in (BLUE, RED):  # fails at the picture, and at the line
        with monkeypatch.context() as patch:
            patch.setattr(journal, "_write", half)
            with pytest.raises(TemporaryError, match="the disk is full; nothing was saved"):
                corrections.save("ann", "add", picture, caption="two")
        assert (corrections.folder / "corrections.jsonl").read_bytes() == before
    assert [file.name for file in (corrections.folder / "pictures").iterdir()] == [f"{sha(RED)}.jpg"]
    second = corrections.save("ann", "add", BLUE, caption="two")
    assert corrections.read() == [first, second]


def killed_after(budget: int, save: Callable[[], str]) -> str | None:
    """Save in a child process that dies after writing so many bytes; return the id if it was acknowledged."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        left = budget

        def write(file: BinaryIO, data: bytes) -> None:
            nonlocal left
            file.write(data[:left])
            if left < len(data):
                os._exit(9)
            left -= len(data)

        journal._write = write
        try:
            os.write(writing, save().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        acknowledged = answer.read()
    os.wait()
    return acknowledged or None


writes = st.tuples(
    st.sampled_from(["ann", "bob"]),
    st.sampled_from([RED, BLUE]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.one_of(st.none(), st.integers(0, 2_000)),  # bytes after which the writer is killed
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(writes, max_size=12))
def test_what_was_acknowledged_is_what_is_read_wherever_writers_are_killed(steps: list) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, lock = Path(place) / "corrections", Path(place) / "lock"
        acknowledged = set()
        for number, (who, picture, caption, budget) in enumerate(steps):

            def save(n: int = number, by: str = who, of: bytes = picture, text: str = caption) -> str:
                return Corrections(folder, lock).save(by, "add", of, caption=f"{n} {text}", key=f"{n}").id

            saved = save() if budget is None else killed_after(budget, save)
            if saved:
                acknowledged.add(saved)
            found = Corrections(folder, lock).read()
            assert {one.id for one in found} == acknowledged
            assert all(Corrections(folder, lock).picture(one) in (RED, BLUE) for one in found)
        ingested = [one for one in Corrections(folder, lock).read() if (folder / str(one.picture)).is_file()]
        assert len(ingested) == len(acknowledged)


WRITER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pipeline.serving.corrections import Corrections
folder, name, picture = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]).read_bytes()
def save(k):
    corrections = Corrections(folder / "corrections", folder / "lock")
    corrections.save(name, "add", picture, caption=f"{name} says {k}")
    return corrections.save("everybody", "add", picture, caption=f"all say {k}", key=f"k{k}").id
with ThreadPoolExecutor(4) as pool:
    print(*pool.map(save, range(20)))
"""


def test_concurrent_processes_and_threads_lose_nothing_and_write_nothing_twice(tmp_path: Path) -> None:
    (tmp_path / "picture.jpg").write_bytes(RED)
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [
        subprocess.Popen([*command, name, str(tmp_path / "picture.jpg")], cwd=ROOT, stdout=subprocess.PIPE)
        for name in ("ann", "bob", "cy")
    ]
    assert all(writer.wait(120) == 0 for writer in writers)
    found = Corrections(tmp_path / "corrections", tmp_path / "lock").read()
    said = sorted((one.who, one.caption) for one in found)
    expected = [(name, f"{name} says {k}") for name in ("ann", "bob", "cy") for k in range(20)]
    assert said == sorted([*expected, *(("everybody", f"all say {k}") for k in range(20))])
    assert [file.name for file in (tmp_path / "corrections" / "pictures").iterdir()] == [f"{sha(RED)}.jpg"]


def test_threads_of_one_page_share_one_object(corrections: Corrections) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: corrections.save("ann", "add", RED, caption=f"{k % 5}"), range(40)))
    assert sorted(one.caption or "" for one in corrections.read()) == [f"{k}" for k in range(5)]


def test_a_torn_last_line_is_never_read_and_is_cut_off(corrections: Corrections) -> None:
    first = corrections.save("ann", "add", RED, caption="one")
    file = corrections.folder / "corrections.jsonl"
    whole = file.read_bytes()
    for torn in (whole[:-1], whole[: len(whole) // 2], b"\0" * 100, "é".encode()[:1]):
        file.write_bytes(whole + torn)
        assert corrections.read() == [first]
    second = corrections.save("ann", "add", RED, caption="two")
    assert file.read_bytes().startswith(whole)
    assert corrections.read() == [first, second]


def test_a_file_that_links_to_dvcs_cache_is_copied_before_it_grows(corrections: Corrections, tmp_path: Path) -> None:
    corrections.save("ann", "add", RED, caption="one")
    file, cached = corrections.folder / "corrections.jsonl", tmp_path / "cached"
    for link in (os.link, os.symlink):
        cached.unlink(missing_ok=True)
        file.replace(cached)
        link(cached, file)
        before = cached.read_bytes()
        corrections.save("ann", "add", RED, caption=f"{link}")
        assert cached.read_bytes() == before
    assert len(corrections.read()) == 3


def test_one_persons_corrections_and_their_pictures_can_be_deleted(corrections: Corrections) -> None:
    corrections.save("ann", "add", RED, caption="hers")
    kept = corrections.save("bob", "add", RED, caption="his")
    corrections.save("ann", "add", BLUE, caption="hers too")
    assert corrections.forget("ann") == (2, 1)
    assert corrections.read() == [kept]
    assert [file.name for file in (corrections.folder / "pictures").iterdir()] == [f"{sha(RED)}.jpg"]
    with pytest.raises(DataError, match="no corrections by 'ann', only by bob"):
        corrections.forget("ann")
    assert b"hers" not in (corrections.folder / "corrections.jsonl").read_bytes()


def test_nobody_else_loses_a_picture_because_a_line_is_damaged(corrections: Corrections) -> None:
    corrections.save("bob", "add", RED, caption="his")
    file = corrections.folder / "corrections.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"who"', b'"whose"'))
    with pytest.raises(DataError, match="no corrections by 'annn'"):
        corrections.forget("annn")
    corrections.save("ann", "add", BLUE, caption="hers")
    assert corrections.forget("ann") == (1, 1)
    assert [file.name for file in (corrections.folder / "pictures").iterdir()] == [f"{sha(RED)}.jpg"]


# Corrections as a source


@pytest.fixture
def here(workspace: Path) -> Corrections:
    write_sample(workspace / "data/raw/sample", pictures=40, seed=3)
    return Corrections()


def built(*sources: str) -> tuple[dict[str, Example], dict]:
    """Ingest and build; return the examples by SHA-256, and the report."""
    set_params(Path.cwd(), {"ingest.sources": list(sources)})
    for source in sources:
        ingest.run(params.load(), Namespace(source=source))
    line = build.run(params.load(), Namespace())
    found = {e.sha256: e for split in SPLITS for e in read_examples(Path("data/dataset") / split)}
    return found, read_json(Path("reports/build.json")) | {"line": line}


def split_of(sha256: str) -> str:
    (split,) = (split for split in SPLITS if sha256 in {e.sha256 for e in read_examples(Path("data/dataset") / split)})
    return split


def raw_pictures() -> dict[str, bytes]:
    """The sample's raw pictures by SHA-256."""
    import zipfile

    with zipfile.ZipFile("data/raw/sample/images.zip") as archive:
        found = [archive.read(name) for name in archive.namelist()]
    return {sha(data): data for data in found}


def test_corrections_join_and_replace_the_captions_of_other_sources_and_move_no_picture(here: Corrections) -> None:
    before, _ = built("sample")
    splits = {sha256: split_of(sha256) for sha256 in before}
    raw = raw_pictures()
    one, two, three, four = sorted(before)[:4]
    here.save("ann", "edit", raw[one], caption="a human caption", said=Said(before[one].captions[0]))
    here.save("ann", "add", raw[two], caption="another caption")
    here.save("bob", "reject", three, said=Said(before[three].captions[0]))
    here.save("bob", "accept", raw[four], caption="the model's words", said=Said("the model's words", "toy", 1))
    here.save("ann", "edit", raw[four], caption="ann's words", said=Said("the model's words", "toy", 1))
    after, report = built("sample", "corrections")
    assert after[one].captions == [*before[one].captions[1:], "a human caption"]
    assert after[two].captions == [*before[two].captions, "another caption"]
    assert (after[three].captions if three in after else []) == before[three].captions[1:]
    assert after[four].captions == [*before[four].captions, "ann's words"]
    assert {sha256: split_of(sha256) for sha256 in after} == {sha256: splits[sha256] for sha256 in after}
    counted = {split: report["corrections"][split]["pictures"] for split in SPLITS}
    corrected = [sha256 for sha256 in (one, two, three, four) if sha256 in after]
    assert counted == {split: sum(splits[s] == split for s in corrected) for split in SPLITS}
    assert f"corrected pictures: {len(corrected)} (train {counted['train']}," in report["line"]
    assert report["captions"]["set_aside"]["corrected"] == 3


def test_own_words_stay_whatever_others_reject(here: Corrections) -> None:
    before, _ = built("sample")
    one = min(before)
    raw = raw_pictures()[one]
    here.save("ann", "add", raw, caption="ann's words")
    here.save("bob", "reject", one, said=Said("ann's words"))
    here.save("bob", "edit", raw, caption="bob's words", said=Said("ann's words"))
    after, _ = built("sample", "corrections")
    assert after[one].captions == [*before[one].captions, "ann's words", "bob's words"]


def test_undone_and_replaced_corrections_do_not_count(here: Corrections) -> None:
    before, _ = built("sample")
    one, two = sorted(before)[:2]
    raw = raw_pictures()
    here.undo(here.save("ann", "reject", one, said=Said(before[one].captions[0])))
    here.save("ann", "edit", raw[two], caption="first try", said=Said("m", "toy", 1))
    here.save("ann", "edit", raw[two], caption="second try", said=Said("m", "toy", 1))
    after, report = built("sample", "corrections")
    assert after[one].captions == before[one].captions
    assert after[two].captions == [*before[two].captions, "second try"]
    assert report["captions"]["set_aside"]["superseded"] == 2
    assert report["captions"]["set_aside"]["no_caption_of_its_own"] == 1


def test_a_new_photo_is_a_picture_of_the_data_set(here: Corrections) -> None:
    here.save("ann", "edit", RED, caption="a red page", said=Said("a car", "toy", 1))
    after, _ = built("sample", "corrections")
    assert after[sha(RED)].captions == ["a red page"]
    assert after[sha(RED)].sources == ["corrections"]


def test_a_source_without_usable_corrections_stops_nothing(here: Corrections) -> None:
    before, _ = built("sample")
    here.undo(here.save("ann", "add", RED, caption="a red page"))
    assert built("sample", "corrections")[0] == before
    here.forget("ann")
    assert built("sample", "corrections")[0] == before


def test_ingest_never_reads_a_torn_line(here: Corrections) -> None:
    saved = here.save("ann", "add", RED, caption="a red page")
    with (here.folder / "corrections.jsonl").open("a") as file:
        file.write(saved.model_copy(update={"id": "x", "caption": "half"}).model_dump_json())
    assert built("sample", "corrections")[0][sha(RED)].captions == ["a red page"]


def test_a_correction_moves_no_picture_of_a_post(workspace: Path) -> None:
    """The pictures of a post follow its first; a corrected one must not follow its own hash instead."""
    folder = workspace / "data/raw/me"
    folder.mkdir(parents=True)
    posts = [{"title": f"post {k}", "media": [{"uri": f"{k}-{j}.jpg"} for j in range(2)]} for k in range(30)]
    (folder / "posts_1.json").write_text(json.dumps(posts))
    second = []
    for k in range(30):
        for j in range(2):
            picture = photo(2 * k + j)
            (folder / f"{k}-{j}.jpg").write_bytes(picture)
            second += [picture] * j
    before = {sha256: split_of(sha256) for sha256 in built("me")[0]}
    for picture in second:
        Corrections().save("ann", "add", picture, caption="another caption")
    after = {sha256: split_of(sha256) for sha256 in built("me", "corrections")[0]}
    assert after == before


def test_git_never_takes_peoples_photos() -> None:
    """DVC tracks them. Committed to git, they could not be deleted, and a retraining would not notice new ones."""
    photo = f"data/raw/corrections/pictures/{sha(RED)}.jpg"
    for path, ignored in ((photo, 0), ("data/raw/corrections.dvc", 1)):
        found = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False)
        assert found.returncode == ignored
