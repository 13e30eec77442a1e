"""A person in a real browser (Debian's Chromium): uploads photos, edits a caption, saves it; the record is on disk."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.serving.corrections import Corrections
from tests.app.conftest import Service
from tests.conftest import ROOT, default_signals, environment, free_port, jpeg

CHROMIUM = Path("/usr/bin/chromium")
WAIT = 180_000  # milliseconds; a machine may be busy
NASTY = "<img src=http://evil.example/x onerror=alert(1)> ![x](http://evil.example/y.png)"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's Chromium"),
]


class Page:
    """`image-captioning app` in a process.

    Attributes:
        address: of the page.
        process: the command.
    """

    def __init__(self, folder: Path, *words: str, **more: str) -> None:
        self._log = folder / "page.log"
        command = [sys.executable, "-m", "pipeline.cli", "app", "--port", f"{free_port()}", *words]
        env = environment(PYTHONPATH=str(ROOT), **more)
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT, preexec_fn=default_signals
            )
        end = time.monotonic() + 120
        while "http://" not in (said := self._log.read_text()):
            assert self.process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.2)
        self.address = said.partition("app: ")[2].split()[0]

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(60)


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def visit(browser: Any, address: str, width: int = 1100) -> tuple[Any, list[str]]:
    """Open the page; the list gets each request to another machine."""
    tab = browser.new_page(viewport={"width": width, "height": 900})
    tab.set_default_timeout(WAIT)
    foreign: list[str] = []
    own = (address, address.replace("http", "ws"), "data:", "blob:")
    tab.on("request", lambda request: None if request.url.startswith(own) else foreign.append(request.url))
    tab.on("dialog", lambda dialog: foreign.append("a script ran"))
    tab.goto(address)
    tab.get_by_label("Your name").fill("ann")
    tab.keyboard.press("Enter")
    return tab, foreign


@pytest.mark.parametrize("width", [1100, pytest.param(390, marks=pytest.mark.slow)])
def test_three_photos_are_uploaded_one_caption_is_edited_and_the_record_is_on_the_disk(
    workspace: Path, service: Service, browser: Any, width: int
) -> None:
    photos = {f"photo {k}.jpg": jpeg("red", (60 + k, 50)) for k in range(3)}
    page = Page(workspace, "--service", service.url)
    tab, foreign = visit(browser, page.address, width)
    files = [{"name": n, "mimeType": "image/jpeg", "buffer": data} for n, data in photos.items()]
    tab.set_input_files("input[type=file]", files)
    caption = tab.get_by_label("Caption", exact=True)
    caption.nth(2).wait_for()
    caption.nth(1).fill(NASTY)
    tab.keyboard.press("Control+Enter")
    tab.get_by_role("button", name="Save").nth(1).click()
    tab.get_by_text("Saved:").wait_for()
    (saved,) = Corrections().read()
    assert (saved.who, saved.action, saved.caption, saved.said) == ("ann", "edit", NASTY, "a red car")
    assert Corrections().picture(saved) == photos["photo 1.jpg"]
    assert tab.get_by_text(NASTY).count() >= 1
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert not foreign
    assert page.end() == 0


def test_photos_that_were_dropped_before_the_model_was_loaded_are_captioned_without_a_click(
    workspace: Path, service: Service, browser: Any
) -> None:
    service.ready = False
    page = Page(workspace, "--service", service.url)
    tab, _ = visit(browser, page.address)
    tab.set_input_files("input[type=file]", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": jpeg("red")})
    tab.get_by_label("Caption", exact=True).wait_for()
    assert tab.get_by_text("No model can caption now.").is_visible()
    service.ready = True
    tab.get_by_text("Suggestions", exact=True).wait_for()
    tab.locator("textarea").filter(has_text="a red car").first.wait_for()  # Streamlit fades the old one out
    assert page.end() == 0


def test_the_page_ends_with_its_command_even_if_that_is_killed(workspace: Path, service: Service) -> None:
    page = Page(workspace, "--service", service.url)
    port = int(page.address.rpartition(":")[2])
    page.process.kill()
    page.process.wait()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.3)
    pytest.fail("the page still listens")


@pytest.mark.slow
def test_beyond_this_machine_the_page_needs_a_token_and_asks_for_it(
    workspace: Path, service: Service, browser: Any
) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "app", "--host", "0.0.0.0", "--service", service.url]
    env = environment(PYTHONPATH=str(ROOT))
    refused = subprocess.run(command, cwd=workspace, env=env, capture_output=True, text=True, timeout=180, check=False)
    assert refused.returncode == 78
    assert "IMAGE_CAPTIONING_TOKEN" in refused.stderr
    page = Page(workspace, "--host", "0.0.0.0", "--service", service.url, IMAGE_CAPTIONING_TOKEN="secret words")
    tab = browser.new_page()
    tab.set_default_timeout(WAIT)
    tab.goto(page.address.replace("0.0.0.0", "127.0.0.1"))
    token = tab.get_by_label("Token", exact=True)
    token.fill("wrong")
    tab.keyboard.press("Enter")
    tab.get_by_text("This is not the token").wait_for()
    assert tab.get_by_label("Your name").count() == 0
    token.fill("secret words")
    tab.keyboard.press("Enter")
    tab.get_by_label("Your name").wait_for()
    assert page.end(signal.SIGINT) == 0


def test_a_taken_port_is_one_line(workspace: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "pipeline.cli", "app", "--port", f"{taken.getsockname()[1]}"]
        env = environment(PYTHONPATH=str(ROOT))
        done = subprocess.run(command, cwd=workspace, env=env, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 78
    assert "is taken" in done.stderr
