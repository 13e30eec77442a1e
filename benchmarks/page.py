"""The page *Caption* in a real browser: seconds from choosing a photo until its first caption can be read.

Beside them, the seconds of `Captioner.caption` for the same photo in a process that has its model loaded. The page asks
for three captions of a photo, as it does for a person. Page, service and Chromium run on the same machine.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import Figure, UnavailableError
from benchmarks._checkpoints import GIT_DEMO, save_git_base
from benchmarks._workspace import workspace
from benchmarks.serving import scenes, server
from pipeline.config import params
from pipeline.data.images import decode
from pipeline.models.captioner import Captioner

CHROMIUM = Path("/usr/bin/chromium")
PORT, SERVICE_PORT = 8623, 8624
ROUNDS = 7
WAIT = 180_000  # milliseconds
# A suggestion, or the caption in the text area.
_READABLE = """() => document.querySelector('[data-testid="stRadio"] label') ||
    [...document.querySelectorAll('textarea')].some(area => area.value.trim())"""


@contextmanager
def app(folder: Path) -> Iterator[str]:
    """`image-captioning app` and a service that has loaded its model; gives the page's address."""
    service, address = f"http://127.0.0.1:{SERVICE_PORT}", f"http://127.0.0.1:{PORT}"
    words = ["pipeline.cli", "app", "--port", str(PORT), "--service", service]
    with (
        server(["pipeline.cli", "serve-model", "--port", str(SERVICE_PORT)], folder, f"{service}/readyz"),
        server(words, folder, address),
    ):
        yield address


def _visited(tab: Any, address: str) -> None:
    """Open the page."""
    tab.goto(address)
    tab.get_by_label("Your name").fill("ann")
    tab.keyboard.press("Enter")
    tab.locator("input[type=file]").wait_for(state="attached")


def _first_captions(tab: Any, pictures: list[bytes]) -> list[float]:
    """Return the seconds until the first caption of each photo can be read; photos are chosen one at a time."""
    found = []
    for number, data in enumerate(pictures):
        tab.reload()
        tab.locator("input[type=file]").wait_for(state="attached")
        tab.wait_for_timeout(1500)  # the page has loaded before a person can choose a photo
        start = time.perf_counter()
        photo = {"name": f"photo {number}.jpg", "mimeType": "image/jpeg", "buffer": data}
        tab.set_input_files("input[type=file]", [photo])
        tab.wait_for_function(_READABLE)
        found.append(time.perf_counter() - start)
    return found


def measured(name: str, checkpoint: Path | None) -> Figure:
    """Compare page and `Captioner.caption` with one checkpoint; None is the GIT of git-base's size."""
    from playwright.sync_api import sync_playwright

    pictures = scenes(ROUNDS + 1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = workspace(Path(temporary), {})
        place = folder / "models" / "finetune"
        if checkpoint:
            shutil.copytree(checkpoint, place)
        else:
            save_git_base(place)
        with app(folder) as address, sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
            tab = browser.new_page()
            tab.set_default_timeout(WAIT)
            _visited(tab, address)
            page = _first_captions(tab, pictures)[1:]
            browser.close()
        captioner, beams = Captioner.from_folder(place), params.load(folder / "params.yaml").evaluate.generation.beams
        alone = []
        for data in pictures:
            start = time.perf_counter()
            captioner.caption([decode(data, 10**9)], beams=beams)
            alone.append(time.perf_counter() - start)
    ours, theirs = statistics.median(page), statistics.median(alone[1:])
    return Figure(
        figure=f"seconds until a photo's first caption on the page, beside `Captioner.caption`, {name}",
        value=round(ours / theirs, 2),
        unit="x",
        goal=1.5,
        better="lower",
        runs=ROUNDS,
        a=f"page: {1000 * ours:.0f} ms",
        b=f"caption: {1000 * theirs:.0f} ms",
    )


def figures() -> list[Figure]:
    """All figures."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        raise UnavailableError("needs playwright: pip install -e '.[dev]'") from None
    if not CHROMIUM.exists():
        raise UnavailableError(f"needs Debian's Chromium, {CHROMIUM}")
    return [measured("git-demo", GIT_DEMO), measured("GIT of git-base's size", None)]
