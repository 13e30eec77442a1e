"""The pages' logic, through Streamlit's AppTest: captioning, reviewing, browsing, and what goes wrong."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from streamlit.testing.v1 import AppTest

from app import background, frame, models, review_queue, voting
from app.session import ASK_TOKEN, escaped
from pipeline.runtime import process_identity, workspace_lock
from pipeline.runtime.atomic_files import read_json
from pipeline.serving import journal
from pipeline.serving.corrections import Corrections, Said
from pipeline.serving.limits import TOKEN
from pipeline.serving.votes import Pair, Votes
from tests.app.conftest import Service
from tests.conftest import ROOT, jpeg

NASTY = "<script>alert(1)</script> ![x](http://evil.example/x.png) :red[$x$]"


def opened(page: str = "caption", person: str = "ann") -> AppTest:
    """Open a page with a visitor's name."""
    script = f"from app import frame, {page}\nframe.inside({page}.page)"
    app = AppTest.from_string(script, default_timeout=60).run()
    if person:
        app.text_input(key="person").set_value(person).run()
    return app


def button(app: AppTest, label: str) -> Any:
    return next(one for one in app.button if one.label == label)


def labels(app: AppTest) -> list[str]:
    return [one.label for one in app.button]


def shown(app: AppTest) -> str:
    kinds = ("text", "markdown", "caption", "info", "success", "warning", "error", "title", "subheader", "code")
    return "\n".join(str(element.value) for kind in kinds for element in getattr(app, kind))


@pytest.fixture
def photos() -> list[tuple[str, bytes, str]]:
    return [(f"{k}.jpg", jpeg("red", (60 + k, 50)), "image/jpeg") for k in range(2)]


def dropped(photos: list[tuple[str, bytes, str]], **visitor: str) -> AppTest:
    app = opened(**visitor)
    app.file_uploader[0].set_value(photos)
    return app.run()


def test_photos_are_captioned_and_an_edit_is_saved_with_the_models_words(
    workspace: Path, service: Service, photos: list
) -> None:
    app = dropped(photos)
    assert service.asked == [1, 1, 3, 3], "the first captions come first"
    assert [radio.options for radio in app.radio] == [[escaped(text) for text in service.captions]] * 2
    assert app.text_area[0].value == "a red car"
    app.text_area[0].set_value("a red square").run()
    button(app, "Save").click().run()
    (saved,) = Corrections().read()
    assert (saved.who, saved.action, saved.caption) == ("ann", "edit", "a red square")
    assert (saved.said, saved.model, saved.version) == ("a red car", "toy", 7)
    assert Corrections().picture(saved) == photos[0][1]
    assert "Saved: a red square" in shown(app)
    assert len(service.asked) == 4, "a click must not caption the photos again"
    button(app, "Undo").click().run()
    assert Corrections().counting() == []


def test_the_first_caption_stays_if_the_other_suggestions_fail(workspace: Path, service: Service, photos: list) -> None:
    service.most = 1
    app = dropped(photos[:1])
    assert app.radio[0].options == ["a red car"]
    assert app.text_area[0].value == "a red car"
    assert "busy" in app.error[0].value
    service.most = 100
    app.run()
    assert len(app.radio[0].options) == 3


def test_the_first_caption_stays_if_another_version_makes_the_other_suggestions(
    workspace: Path, service: Service, photos: list
) -> None:
    service.changes_after = 1
    app = dropped(photos[:1])
    assert service.asked == [1, 3]
    assert app.radio[0].options == ["a red car"]
    assert any("version 7" in caption.value for caption in app.caption)


def test_a_suggestion_that_is_saved_as_it_is_counts_as_accepted(
    workspace: Path, service: Service, photos: list
) -> None:
    app = dropped(photos[:1])
    app.radio[0].set_value("a car").run()
    assert app.text_area[0].value == "a car"
    button(app, "Save").click().run()
    (saved,) = Corrections().read()
    assert (saved.action, saved.caption, saved.said) == ("accept", "a car", "a car")


def test_without_a_name_nothing_can_be_saved(workspace: Path, service: Service, photos: list) -> None:
    app = dropped(photos[:1], person="")
    assert button(app, "Save").disabled
    assert "Write your name" in shown(app)


def test_without_a_model_the_page_says_what_to_do_and_own_captions_can_be_saved(
    workspace: Path, service: Service, photos: list
) -> None:
    service.ready = False
    app = dropped(photos[:1])
    assert "models:/toy has no version" in shown(app).replace("\\", "")
    app.text_area[0].set_value("a square").run()
    button(app, "Save").click().run()
    (saved,) = Corrections().read()
    assert (saved.action, saved.caption, saved.said) == ("edit", "a square", None)


def test_what_was_written_before_there_was_a_model_stays_and_empty_fields_get_its_words(
    workspace: Path, service: Service, photos: list
) -> None:
    service.ready = False
    app = dropped(photos[:2])
    app.text_area[0].set_value("a square").run()
    service.ready = True
    button(app, "Try again").click().run()
    assert [area.value for area in app.text_area] == ["a square", "a red car"]
    app.radio[0].set_value(app.radio[0].options[1]).run()
    assert app.text_area[0].value == app.radio[0].options[1], "a suggestion that is picked replaces it"


def test_a_service_that_is_down_is_a_message(
    workspace: Path, service: Service, photos: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.server.server_close()
    service.server.shutdown()
    app = dropped(photos[:1])
    assert "can't be reached" in shown(app)
    assert not app.exception


def test_strangers_text_is_shown_as_it_is(workspace: Path, service: Service) -> None:
    service.captions = [NASTY]
    app = dropped([(f"{NASTY[:20]}.jpg".replace("/", ""), jpeg(), "image/jpeg")])
    (option,) = app.radio[0].options
    assert "![" not in option
    assert option.startswith(chr(92) + "<script" + chr(92) + ">alert")
    button(app, "Save").click().run()
    assert "![x]" not in "".join(str(one.value) for one in app.success)
    service.error = NASTY
    app = dropped([("b.jpg", jpeg("blue"), "image/jpeg")])
    assert "![x]" not in "".join(str(one.value) for one in app.error)


def test_a_full_disk_is_told_and_the_save_can_be_repeated(
    workspace: Path, service: Service, photos: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: BinaryIO, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    app = dropped(photos[:1])
    with monkeypatch.context() as patch:
        patch.setattr(journal, "_write", full)
        button(app, "Save").click().run()
    assert "the disk is full; nothing was saved" in shown(app).replace("\\", "")
    assert Corrections().read() == []
    button(app, "Save").click().run()
    assert len(Corrections().read()) == 1


def test_what_is_not_a_picture_is_a_message_beside_the_others(workspace: Path, service: Service, photos: list) -> None:
    app = dropped([("x.jpg", b"no picture", "image/jpeg"), photos[0]])
    assert "is not a JPEG" in shown(app)
    assert len(app.text_area) == 1


def test_what_a_person_edits_stays_if_the_service_dies_or_another_version_is_served(
    workspace: Path, service: Service, photos: list
) -> None:
    app = dropped(photos[:1])
    app.text_area[0].set_value("half a capt").run()
    service.version, service.captions = 8, ["something else"]
    app.run()
    assert app.text_area[0].value == "half a capt"
    assert "by toy, version 7" in shown(app).replace("\\", "")
    service.ready = False
    app.run()
    assert "No model can caption now" in shown(app)
    assert app.text_area[0].value == "half a capt"
    button(app, "Save").click().run()
    (saved,) = Corrections().read()
    assert (saved.action, saved.caption, saved.said, saved.version) == ("edit", "half a capt", "a red car", 7)
    service.ready = True
    app.run()
    button(app, "Other suggestions").click().run()
    assert "by toy, version 8" in shown(app).replace("\\", "")


def test_photos_that_are_dropped_again_are_captioned_by_the_version_that_is_served_now(
    workspace: Path, service: Service, photos: list
) -> None:
    app = dropped(photos[:1])
    service.version, service.captions = 8, ["something else"]
    app.file_uploader[0].set_value([]).run()
    app.file_uploader[0].set_value(photos[:1]).run()
    assert "by toy, version 8" in shown(app).replace("\\", "")
    assert app.text_area[0].value == "something else"


# Champion against challenger


@pytest.fixture
def compared(service: Service, photos: list, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """Opens *Caption* with a photo, and compares."""
    monkeypatch.setattr(voting, "_publish_later", lambda params: None)
    service.captions, service.challenger = ["a red car", "a car"], "a red bus"

    def open_it(**visitor: str) -> AppTest:
        app = dropped(photos[:1], **visitor)
        return app.toggle(key="compare").set_value(True).run()

    return open_it


def test_a_vote_is_cast_before_the_names_of_the_versions_are_shown(
    workspace: Path, compared: Callable[..., AppTest], photos: list
) -> None:
    app = compared()
    said = shown(app)
    assert {"A: a red car", "B: a red bus"} <= set(said.splitlines()) or {"B: a red car", "A: a red bus"} <= set(
        said.splitlines()
    )
    assert not re.search(r"version|champion [:)]|toy", said, re.IGNORECASE), "it must be blind"
    assert not app.radio, "the suggestions would tell which caption is the champion's"
    button(app, "B").click().run()
    (vote,) = Votes().read()
    assert (vote.who, vote.model, vote.champion, vote.challenger) == ("ann", "toy", 7, 8)
    assert (vote.said, vote.challenger_said) == ("a red car", "a red bus")
    assert vote.choice != vote.first, "B is the second"
    assert vote.choice in ("champion", "challenger")
    assert "Saved: your vote is for version" in shown(app)
    assert app.radio, "now the suggestions are shown"
    assert "B" not in labels(app)


def test_one_half_of_the_photos_shows_the_champion_first_and_the_same_half_at_every_visit() -> None:
    pair = Pair("toy", 7, 8, "a red car", "a red bus")
    first = [pair.first("ann", f"{number:064x}") for number in range(400)]
    assert 160 < first.count("champion") < 240
    assert first == [pair.first("ann", f"{number:064x}") for number in range(400)]
    assert first != [pair.first("bob", f"{number:064x}") for number in range(400)]


def test_there_is_no_vote_where_both_say_the_same_or_nobody_challenges(
    workspace: Path, service: Service, compared: Callable[..., AppTest]
) -> None:
    service.challenger = "A red car "
    service.captions = ["A red car"]
    app = compared()
    assert "Both versions say the same." in shown(app)
    assert "B" not in labels(app)
    assert app.radio
    service.challenger = None
    app = compared()
    assert "Nothing to compare now" in shown(app)
    assert "has no challenger" in shown(app).replace("\\", "")
    assert app.radio


def test_without_a_name_nobody_votes_and_a_full_disk_is_told(
    workspace: Path, compared: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = compared(person="")
    assert button(app, "A").disabled
    app.text_input(key="person").set_value("ann").run()

    def full(file: BinaryIO, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "_write", full)
        button(app, "A").click().run()
    assert "the disk is full; nothing was saved" in shown(app).replace("\\", "")
    assert Votes().read() == []
    button(app, "A").click().run()
    assert len(Votes().read()) == 1


# Review


@pytest.fixture
def sighted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(review_queue, "_BLIND_SHARE", 0.0)


def test_review_saves_the_raw_picture_of_the_data_set_and_goes_on(
    data_set: Path, service: Service, sighted: None
) -> None:
    app = opened("review")
    before = shown(app)
    app.text_area[0].set_value("my words").run()
    button(app, "Save edit").click().run()
    (saved,) = Corrections().read()
    assert (saved.action, saved.caption, saved.said, saved.version) == ("edit", "my words", "a red car", 7)
    assert Corrections().picture(saved) is not None
    assert shown(app) != before
    button(app, "Accept").click().run()
    assert [one.action for one in Corrections().counting()] == ["edit", "accept"]
    button(app, "Reject").click().run()
    assert [one.action for one in Corrections().counting()] == ["edit", "accept", "reject"]
    button(app, "Undo").click().run()
    assert [one.action for one in Corrections().counting()] == ["edit", "accept"]
    assert list(app.dataframe[0].value["agreement"]) == ["50%"]
    button(app, "Reject").click().run()
    assert [one.action for one in Corrections().counting()] == ["edit", "accept", "reject"], "as before the undo"


def test_a_name_is_compared_as_it_is_saved(data_set: Path, service: Service, sighted: None) -> None:
    app = opened("review", person="Jose\u0301  Lee")
    before = shown(app)
    app.text_area[0].set_value("my words").run()
    button(app, "Save edit").click().run()
    assert [one.who for one in Corrections().read()] == ["Jos\u00e9 Lee"]
    assert shown(app) != before, "the next picture"


def test_a_caption_of_the_data_can_be_called_wrong(data_set: Path, service: Service, sighted: None) -> None:
    app = opened("review")
    wrong = labels(app).count("Wrong")
    button(app, "Wrong").click().run()
    (saved,) = Corrections().read()
    assert (saved.action, saved.model) == ("reject", None)
    assert labels(app).count("Wrong") == wrong - 1


def test_a_share_of_the_pictures_is_shown_without_the_models_words(
    data_set: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = [review_queue.is_blind(f"{k}", "ann") for k in range(5_000)]
    assert 0.17 < sum(blind) / len(blind) < 0.23
    monkeypatch.setattr(review_queue, "_BLIND_SHARE", 1.0)
    app = opened("review")
    assert "a red car" not in shown(app)
    assert app.text_area[0].value == ""
    assert not {"Accept", "Reject"} & set(labels(app))
    app.text_area[0].set_value("what I see").run()
    button(app, "Save").click().run()
    (saved,) = Corrections().read()
    assert (saved.action, saved.caption, saved.said) == ("add", "what I see", "a red car")


def test_review_begins_with_the_pictures_that_the_model_is_least_sure_of(
    data_set: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app import review
    from pipeline.serving.client import Result

    items = review_queue.all_items([])[:5]

    def scored(pictures: list[bytes]) -> dict:
        return {
            review.identity(data): (Said("x", "toy", 7), Result(["x"], [-float(len(pictures) - k)]))
            for k, data in enumerate(pictures)
        }

    monkeypatch.setattr(review, "captions_of", scored)
    params = review.load_params()
    assert review._least_sure(items[::-1], params) == items[::-1]
    assert review._least_sure(items, params) == items


def test_pictures_that_only_corrections_have_are_reviewed_too(data_set: Path, service: Service, sighted: None) -> None:
    photo = jpeg("red", (90, 70))
    Corrections().save("bob", "edit", photo, caption="bob's words")
    (new,) = (item for item in review_queue.all_items(Corrections().counting()) if item.split is None)
    assert new.picture(Corrections()) == photo
    assert new.example.captions == ["bob's words"]


@pytest.mark.parametrize("page", ["caption", "review", "data", "models"])
def test_a_first_visit_to_an_empty_workspace_is_a_clear_page(
    workspace: Path, service: Service, page: str, mlflow_db: Path
) -> None:
    service.ready = False
    app = opened(page)
    assert not app.exception
    assert not [error.value for error in app.error]
    words = {"caption": "No model", "review": "No pictures yet", "data": "no data set yet", "models": "No version"}
    assert words[page] in shown(app)


def test_a_workspace_in_use_is_said(data_set: Path, service: Service) -> None:
    me = process_identity.identity()
    workspace_lock.take("`dvc repro`", me)
    try:
        assert "in use by" in shown(opened("data"))
    finally:
        workspace_lock.give_back(me)


@pytest.mark.parametrize(
    ("sent", "asked"),
    [
        (None, True),
        ("Bearer open sesame", False),
        ("bearer open sesame", False),
        ("Bearer no", True),
        ("Basic open sesame", True),
    ],
)
def test_a_proxy_that_sends_the_token_opens_the_page_for_the_visitor(
    sent: str | None, asked: bool, workspace: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ASK_TOKEN, "1")
    monkeypatch.setenv(TOKEN, "open sesame")
    headers = {} if sent is None else {"Authorization": sent}
    monkeypatch.setattr(type(frame.st.context), "headers", property(lambda context: headers))
    page = AppTest.from_string("from app import frame\nframe.main()", default_timeout=60).run()
    assert (page.text_input[0].label == "Token") is asked


@pytest.mark.parametrize("token", ["", " "])
def test_without_a_token_of_the_server_no_token_opens_the_page(
    token: str, workspace: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ASK_TOKEN, "1")
    monkeypatch.setenv(TOKEN, token)
    monkeypatch.setattr(type(frame.st.context), "headers", property(lambda context: {"Authorization": "Bearer "}))
    page = AppTest.from_string("from app import frame\nframe.main()", default_timeout=60).run()
    assert page.text_input[0].label == "Token"


def test_a_failure_is_a_message_and_no_traceback(
    workspace: Path, service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "params.yaml").write_text("ingest: {}")
    app = opened("data")
    assert "params.yaml" in shown(app).replace("\\", "")
    assert not app.exception


# Data


def test_data_is_searched_and_a_picture_is_excluded(data_set: Path, service: Service) -> None:
    app = opened("data")
    (item, *_) = review_queue.all_items([])
    search = next(field for field in app.text_input if field.label.startswith("Search"))
    search.set_value(item.example.sha256).run()
    assert "1 of " in shown(app)
    app.button(key=f"exclude-{item.example.sha256}").click().run()
    (file,) = (data_set / "data/excluded").glob("*.jpg")
    assert file.stem == item.example.sha256
    app.run()
    app.button(key=f"include-{file.name}").click().run()
    assert not file.exists()


def test_what_was_set_aside_is_listed_by_reason(data_set: Path, service: Service) -> None:
    app = opened("data")
    reason = next(field for field in app.selectbox if field.label == "Reason")
    reason.set_value("no_caption").run()
    (table,) = app.dataframe
    assert len(table.value) > 0
    assert set(table.value["reason"]) == {"no row has a caption for it"}


# Models


ROWS = [
    {
        "version": 2,
        "champion": "",
        "gate": "kept (against 1)",
        "CIDEr-D": 0.9,
        "reasons": f"worse {NASTY}",
        "waits": False,
    },
    {"version": 1, "champion": "🏆", "gate": "first", "CIDEr-D": 1.0, "reasons": "", "waits": False},
]


def test_a_version_is_promoted_and_rolled_back_by_the_commands(
    workspace: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def run(*words: str) -> tuple[bool, str]:
        ran.append(words)
        return words[-1] != "--rollback", f"the outcome {NASTY}"

    monkeypatch.setattr(models, "_versions", lambda params: (ROWS, 1))
    monkeypatch.setattr(models, "run", run)
    app = opened("models")
    assert "models:/toy/7" in shown(app)
    assert list(app.dataframe[0].value["gate"]) == ["kept (against 1)", "first"]
    button(app, "Compare and promote if better").click().run()
    assert "the outcome" in app.success[0].value
    assert "![x]" not in app.success[0].value
    button(app, "Roll back the champion").click().run()
    assert "the outcome" in app.error[0].value
    assert ran == [("promote", "--challenger", "2"), ("promote", "--rollback")]
    app.selectbox[0].set_value(1).run()
    assert button(app, "Compare and promote if better").disabled


def test_a_waiting_version_is_approved_in_the_visitors_name(
    workspace: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def run(*words: str) -> tuple[bool, str]:
        ran.append(words)
        return True, "version 2 is champion"

    monkeypatch.setattr(models, "_versions", lambda params: ([{**ROWS[0], "waits": True}, ROWS[1]], 1))
    monkeypatch.setattr(models, "run", run)
    app = opened("models", person="")
    assert "Version 2 waits for approval" in shown(app)
    assert button(app, "Approve version 2").disabled
    app.text_input(key="person").set_value("--rollback").run()
    button(app, "Approve version 2").click().run()
    assert ran == [("promote", "--approve", "2", "--by=--rollback")]
    assert "Approve version 1" not in labels(app)


def test_a_command_returns_its_last_line(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    succeeded, line = background.run("promote", "--rollback", "--challenger", "1")
    assert not succeeded
    assert line == "promote: --rollback: cannot be combined with --challenger; use one of the two"


def test_a_retraining_is_started_once_and_its_log_is_shown(
    workspace: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import time; print('checks the sources', flush=True); time.sleep(60)"
    monkeypatch.setattr(background, "_COMMAND", [sys.executable, "-c", script])
    monkeypatch.setattr(models, "_versions", lambda params: (ROWS, 1))
    Corrections().save("ann", "add", jpeg(), caption="a page")
    app = opened("models")
    assert "no training uses them yet" in shown(app)
    button(app, "Start a retraining").click().run()
    try:
        assert background.is_retraining()
        assert "Start a retraining" not in labels(app)
        end = time.monotonic() + 20
        while "checks the sources" not in shown(app):
            assert time.monotonic() < end
            button(app, "Refresh").click().run()
    finally:
        process = process_identity.pid_of(read_json(background._RETRAINING))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert not background.is_retraining()
