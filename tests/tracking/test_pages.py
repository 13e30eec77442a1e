"""The HTML pages that runs show in MLflow."""

from __future__ import annotations

import re
from typing import Any

from pipeline.data.dataset import Example
from pipeline.tracking import captions_page, samples_page
from tests.conftest import jpeg


class Reader:
    """Gives the same picture for every name."""

    def read(self, name: str) -> bytes:
        return jpeg()


READER: Any = Reader()
EXAMPLE = Example(
    file_name="a.jpg", captions=["a boat", "one boat at sea"], sha256="0" * 64, sources=["s"], origins=["s:a.jpg"]
)


def test_the_kept_epoch_is_bold_and_no_other() -> None:
    page = samples_page.render([EXAMPLE], READER, [["first"], ["second"], ["third"]], best_epoch=2)
    assert re.findall(r'<li class="kept"><span>(\d)</span>(\w+)</li>', page) == [("2", "second")]
    assert "Bold: epoch 2" in page
    assert "first-child" not in page  # the first in the list is the last epoch
    assert [page.index(f">{caption}<") for caption in ("third", "second", "first")] == sorted(
        page.index(f">{caption}<") for caption in ("first", "second", "third")
    )


def test_the_page_of_captions_has_all_of_them_whole_and_escaped() -> None:
    long = " ".join(f"word{n}" for n in range(60))
    captions = {"model": long, "nearest_picture": "<script>alert(1)</script>"}
    page = captions_page.render([{"file_name": "a.jpg", "references": EXAMPLE.captions, "captions": captions}], READER)
    assert long in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "ellipsis" not in page
    assert re.findall(r"<th>([^<]+)</th>", page) == ["picture", "model", "nearest picture", "people"]
    assert all(f"<p>{caption}</p>" in page for caption in EXAMPLE.captions)
