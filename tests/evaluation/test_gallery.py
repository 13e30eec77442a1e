from __future__ import annotations

import base64
import hashlib
import re

import pytest

from pipeline.evaluation import gallery
from tests.conftest import jpeg

SCORES = {"model": {"BLEU-4": 0.5, "CIDEr-D": 1.25}, "nearest_picture": {"BLEU-4": 0.1, "CIDEr-D": 0.2}}


def page(caption: str, name: str = "1.jpg", versus: str | None = None) -> str:
    captions = {"model": caption, "before": caption}
    picture = "data:image/jpeg;base64,AAAA"
    shown = gallery.Card(name, picture, [caption, "b"], captions, {"model": 1.0, "before": 0.25})
    ends = {system: dict.fromkeys(values, (0.1, 1.5)) for system, values in SCORES.items()}
    return gallery.render([shown], SCORES, ends, 1234, "letters & digits", "A title", "model", versus)


def test_captions_and_names_are_escaped() -> None:
    html = page('<script>alert(1)</script>"><img src=x onerror=y>', name='"><script>alert(2)</script>')
    assert html.count("<script") == 1
    assert "onerror=y>" not in html
    assert "&lt;script&gt;" in html


def test_the_page_is_complete_and_loads_nothing() -> None:
    html = page("x")
    assert "1,234 pictures" in html
    assert "Tokenizer: letters &amp; digits." in html
    assert "1.250<small>0.10 to 1.50</small>" in html
    assert "http" not in html.replace('http-equiv="Content-Security-Policy"', "")


def test_the_page_runs_its_own_script_and_no_other() -> None:
    html = page("x")
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in html
    assert "default-src 'none'" in html


def test_cards_show_the_gain_if_there_is_a_system_to_compare_with() -> None:
    compared, alone = page("x", versus="before"), page("x")
    assert 'data-score="1.0" data-gain="0.75"' in compared
    assert '<b class="up">+0.75</b>' in compared
    assert "most worsened first" in compared
    assert "+0.75" not in alone
    assert "most worsened first" not in alone


def test_the_best_worst_most_improved_and_most_worsened_pictures_are_selected() -> None:
    scores = [5.0, 1.0, 9.0, 4.0, 4.5, 0.5, 4.0, 4.0]
    gains = [0.0, 0.0, 0.0, 3.0, -2.0, 0.0, 2.5, 0.0]
    assert gallery.select(scores, gains, 4) == [2, 3, 4, 5]
    assert gallery.select(scores, gains, 5) == [0, 2, 3, 4, 5]
    assert gallery.select(scores, gains, 8) == gallery.select(scores, gains, 99) == list(range(8))


def test_an_empty_caption_is_shown_as_such() -> None:
    assert "(nothing)" in page("")


@pytest.mark.parametrize(("pictures", "size"), [(1, (272, 394)), (4, (1088, 394)), (6, (1088, 788))])
def test_a_contact_sheet_has_one_cell_per_picture(pictures: int, size: tuple[int, int]) -> None:
    items = [
        (jpeg("red", (40 + k, 30)), {"model": "word " * 200, "people": "\N{CAMERA} #sea"}) for k in range(pictures)
    ]
    sheet = gallery.contact_sheet(items)
    assert sheet.size == size
    for k in range(pictures):
        assert sheet.getpixel((k % 4 * 272 + 136, k // 4 * 394 + 136)) == pytest.approx((254, 0, 0), abs=3)
