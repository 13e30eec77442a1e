from __future__ import annotations

import pytest

from pipeline.score import gallery
from tests.conftest import jpeg

SCORES = {"model": {"BLEU-4": 0.5, "CIDEr-D": 1.25}, "nearest_picture": {"BLEU-4": 0.1, "CIDEr-D": 0.2}}


def page(caption: str) -> str:
    shown = gallery.Shown("data:image/jpeg;base64,AAAA", [caption, "b"], {"model": caption}, {"model": 1.0})
    return gallery.render([shown], SCORES, 1234, "A title")


def test_a_strangers_caption_can_not_become_part_of_the_page() -> None:
    html = page('<script>alert(1)</script>"><img src=x onerror=y>')
    assert "<script" not in html
    assert "onerror=y>" not in html
    assert "&lt;script&gt;" in html


def test_the_page_is_whole_and_loads_nothing() -> None:
    html = page("x")
    assert "1,234 pictures" in html
    assert "1.250" in html
    assert "http" not in html.replace('http-equiv="Content-Security-Policy"', "")


def test_an_empty_caption_is_shown_as_such() -> None:
    assert "(nothing)" in page("")


@pytest.mark.parametrize(("pictures", "size"), [(1, (272, 394)), (4, (1088, 394)), (6, (1088, 788))])
def test_a_contact_sheet_has_a_cell_a_picture(pictures: int, size: tuple[int, int]) -> None:
    items = [
        (jpeg("red", (40 + k, 30)), {"model": "word " * 200, "people": "\N{CAMERA} #sea"}) for k in range(pictures)
    ]
    sheet = gallery.contact_sheet(items)
    assert sheet.size == size
    for k in range(pictures):
        assert sheet.getpixel((k % 4 * 272 + 136, k // 4 * 394 + 136)) == pytest.approx((254, 0, 0), abs=3)
