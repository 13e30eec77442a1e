"""The whole story in a real browser: photos, a correction, a retraining, an approval, and the new version captions.

Everything is real: the page, the captioning service, git, DVC, Prefect, MLflow and a model that trains. In the second
telling the service is killed between any two steps, and the whole page once.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.serving.corrections import Corrections
from pipeline.serving.votes import Votes
from pipeline.synthetic.sample import write_sample
from pipeline.synthetic.scenes import draw, random_scene
from tests.app.test_browser import CHROMIUM, WAIT, Page, browser
from tests.conftest import environment, set_params

__all__ = ["browser"]  # a fixture
SHOTS = os.environ.get("IMAGE_CAPTIONING_SHOTS")  # folder for screenshots of the pages, for docs/images

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's Chromium"),
]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the workspace; a busy machine may need long for it."""
    return subprocess.run(
        words, cwd=folder, env=environment(), capture_output=True, text=True, timeout=1500, check=False
    )


@pytest.fixture
def trained(clone: Callable[[], Path]) -> Path:
    """A workspace whose first version is champion. Every later version waits for a person."""
    folder = clone()
    shutil.rmtree(folder / "data" / "raw")
    write_sample(folder / "data" / "raw" / "small", pictures=90, seed=1)
    changes = {
        "ingest.sources": ["small"],
        "finetune.epochs": 1,
        "finetune.learning_rate": 1e-4,  # after one epoch at 1e-3 the model is worse than before fine-tuning
        "finetune.validation_captions": 10,
        "evaluate.max_pictures": 20,
        "evaluate.generation.beams": 2,
        "evaluate.gallery_pictures": 4,
        "promote.least_gain": -5.0,
        "promote.least_pictures": 1,
        "serving.follow_seconds": 0.5,
        "flow.retries": 1,
        "flow.retry_seconds": 1,
    }
    set_params(folder, changes)
    for words in (["dvc", "add", "data/raw/small"], ["dvc", "repro"], ["image-captioning", "promote", "--force"]):
        done = run(folder, *words)
        assert done.returncode == 0, done.stdout + done.stderr
    set_params(folder, {"ingest.sources": ["small", "corrections"], "promote.approval": "always"})
    git = ["git", "-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    for words in (["add", "-A"], ["commit", "-qm", "train on corrections, and ask a person"]):
        assert run(folder, *git, *words).returncode == 0
    return folder


def photos() -> list[dict[str, Any]]:
    """Three drawn scenes that no data set has, as files to upload."""
    rng, grain = random.Random(99), np.random.default_rng(99)
    files = []
    for number in range(3):
        buffer = io.BytesIO()
        draw(random_scene(rng), grain).save(buffer, "JPEG", quality=95)
        files.append({"name": f"photo {number}.jpg", "mimeType": "image/jpeg", "buffer": buffer.getvalue()})
    return files


class Story:
    """A person at the page, and the fate that strikes between two steps."""

    def __init__(self, folder: Path, browser: Any) -> None:
        self.folder, self.browser = folder, browser
        self.timeout = pytest.importorskip("playwright.sync_api").TimeoutError
        self.page = Page(folder)
        self.tab = self.visit()

    def visit(self) -> Any:
        tab = self.browser.new_page(viewport={"width": 1100, "height": 1000})
        tab.set_default_timeout(WAIT)
        name = tab.get_by_label("Your name")
        for _ in range(4):  # a browser that starves may miss the page's first connection
            tab.goto(self.page.address)
            with suppress(self.timeout):
                name.wait_for(timeout=60_000)
                break
        name.fill("ann")
        tab.keyboard.press("Enter")
        return tab

    def service(self) -> psutil.Process | None:
        """The captioning service that `image-captioning app` started."""
        for child in psutil.Process(self.page.process.pid).children():
            with suppress(psutil.Error):  # a process that was killed a moment ago
                if "serve-model" in child.cmdline():
                    return child
        return None

    def kill_service(self) -> None:
        """Kill the service; the page says so and goes on, and the service is back after a while."""
        dead = self.service()
        assert dead is not None
        dead.kill()
        self.until(lambda: (alive := self.service()) is not None and alive.pid != dead.pid, "a new service")

    def kill_all(self) -> None:
        """Kill the page with its service, and start it again, as a person would."""
        self.page.process.kill()
        self.page.process.wait()
        self.tab.close()
        self.page = Page(self.folder)
        self.tab = self.visit()

    def open(self, name: str) -> None:
        self.tab.get_by_role("link", name=name).first.click()
        self.tab.get_by_role("heading").first.wait_for()

    def until(self, condition: Callable[[], object], what: str) -> None:
        end = time.monotonic() + WAIT / 1000
        while not condition():
            assert time.monotonic() < end, f"waited in vain for {what}"
            time.sleep(0.3)

    def until_ready(self) -> None:
        """Press *Try again* until the model captions, as the page says."""
        tab = self.tab

        def ready() -> bool:
            again = tab.get_by_role("button", name="Try again")
            if not again.count():
                return True
            assert tab.get_by_text("No model can caption now").count()
            again.first.click()
            tab.wait_for_timeout(1000)
            return False

        self.until(ready, "a model")

    def shot(self, name: str) -> None:
        if SHOTS:
            for width in (1100, 390):
                self.tab.set_viewport_size({"width": width, "height": 1000})
                self.tab.wait_for_timeout(1500)
                self.tab.screenshot(path=f"{SHOTS}/{name}-{width}.png", full_page=True)
            self.tab.set_viewport_size({"width": 1100, "height": 1000})
            self.tab.wait_for_timeout(500)


@pytest.fixture
def story(trained: Path, browser: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Story]:
    monkeypatch.chdir(trained)
    told = Story(trained, browser)
    yield told
    if told.page.process.poll() is None:
        told.page.end(signal.SIGKILL)


def upload(story: Story) -> None:
    story.until_ready()
    story.tab.set_input_files("input[type=file]", photos())
    story.tab.get_by_label("Caption", exact=True).nth(2).wait_for()


def edit(story: Story, text: str) -> None:
    story.tab.get_by_label("Caption", exact=True).nth(1).fill(text)
    story.tab.keyboard.press("Control+Enter")
    story.tab.get_by_text(text).first.wait_for()


def save(story: Story, text: str) -> None:
    story.tab.get_by_role("button", name="Save").nth(1).click()
    story.tab.get_by_text("Saved:").first.wait_for()
    assert [one.caption for one in Corrections().read()] == [text]


def retrain(story: Story) -> None:
    done = run(story.folder, "image-captioning", "retrain")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "models:/image-captioning/2 waits for approval, version 1 stays" in done.stdout
    assert "cause: data" in done.stdout


def vote(story: Story) -> None:
    """Compare the two versions on the photos, and vote where they say different things."""
    story.open("Caption")
    story.until_ready()
    if not story.tab.get_by_label("Caption", exact=True).count():
        story.tab.set_input_files("input[type=file]", photos())
    story.tab.get_by_text("Compare with the challenger").click()
    question = story.tab.get_by_text("Which caption is better?")
    same = story.tab.get_by_text("Both versions say the same.")
    again = story.tab.get_by_role("button", name="Try again")

    def compared() -> bool:
        if question.count() + same.count() == 3:
            return True
        if again.count():
            again.first.click()
        story.tab.wait_for_timeout(1000)
        return False

    story.until(compared, "the challenger's captions")
    story.shot("page-vote")
    cast = question.count()
    for number in range(cast):
        story.tab.get_by_role("button", name="Both are good").first.click()
        story.tab.get_by_text("Saved: your vote").nth(number).wait_for()
    assert len(Votes().counting()) == cast
    story.tab.get_by_text("Compare with the challenger").click()


def approve(story: Story) -> None:
    story.open("Models")
    story.tab.get_by_text("Version 2 waits for approval.").wait_for()
    story.shot("page-models")
    story.tab.get_by_role("button", name="Approve version 2").click()
    story.tab.get_by_text("champion in place of version 1, approved by ann").first.wait_for()


def see_the_new_version(story: Story) -> None:
    def follows() -> bool:
        if story.tab.get_by_text("The service captions with models:/image-captioning/2.").count():
            return True
        story.tab.reload()
        story.tab.get_by_label("Your name").fill("ann")
        story.tab.keyboard.press("Enter")
        story.tab.get_by_text("The service captions with").wait_for()
        return False

    story.until(follows, "version 2")
    story.open("Caption")
    story.until_ready()
    story.tab.set_input_files("input[type=file]", photos())

    def captions() -> bool:
        again = story.tab.get_by_role("button", name="Try again")
        if again.count():
            again.first.click()
        story.tab.wait_for_timeout(1000)
        return bool(story.tab.get_by_text("by image-captioning, version 2").count() == 3)

    story.until(captions, "captions by version 2")
    story.shot("page-caption")


def nothing(story: Story) -> None:
    pass


@pytest.mark.parametrize("strikes", [nothing, Story.kill_service], ids=["in peace", "the service is killed each time"])
def test_three_photos_one_correction_a_retraining_and_the_page_captions_with_the_new_version(
    story: Story, strikes: Callable[[Story], None]
) -> None:
    text = "a scene that ann describes better"
    upload(story)
    strikes(story)
    edit(story, text)
    strikes(story)
    if strikes is not nothing:
        assert story.tab.get_by_label("Caption", exact=True).nth(1).input_value() == text, "the edit is lost"
    save(story, text)
    strikes(story)
    retrain(story)
    strikes(story)
    vote(story)
    strikes(story)
    if strikes is not nothing:
        story.kill_all()
        assert [one.caption for one in Corrections().read()] == [text]
    approve(story)
    strikes(story)
    see_the_new_version(story)
    assert [one.caption for one in Corrections().read()] == [text]
    assert story.page.end() == 0
