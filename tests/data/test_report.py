from __future__ import annotations

import doctest
import hashlib
import io
import random
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import build, ingest
from pipeline.config import params
from pipeline.data import report as data_page
from pipeline.data.audit import FILE_REASONS, ROW_REASONS, SetAside
from pipeline.data.dataset import Example, PictureReader, read_examples
from pipeline.data.images import data_url
from pipeline.data.split import SPLITS
from pipeline.synthetic.sample import write_sample
from tests.conftest import jpeg, set_params
from tests.test_build import photo

RED = jpeg("red")
CUT = {"max_tokens": 48, "captions": 21, "share": 0.21, "tokens": 1300, "share_of_tokens": 0.27, "examples": []}


def example(name: str, *captions: str) -> Example:
    return Example(f"{name}.jpg", list(captions), hashlib.sha256(name.encode()).hexdigest(), ["s"], [f"i.zip:{name}"])


def render(
    *train: Example,
    test: tuple[Example, ...] = (),
    aside: tuple[SetAside, ...] = (),
    near: tuple[tuple[Example, Example], ...] = (),
    picture: Callable[[Example], bytes] = lambda _: RED,
    **report: Any,
) -> str:
    counts = {
        "in": 1234,
        "kept": {"train": len(train), "validation": 0, "test": len(test)},
        "set_aside": {"a": 3, "b": 4},
    }
    changed = {"count": 0, "examples": []}
    shown = {
        "pictures": counts,
        "captions": counts,
        "captions_changed": changed,
        "unknown_tokens": None,
        "cut_captions": None,
        "excluded": {},
    }
    kept = {"train": list(train), "validation": [], "test": list(test)}
    return data_page.render(shown | report, kept, aside, near, picture)


class Elements(HTMLParser):
    """A parsed page: its elements with their attributes, and its pieces of text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += filter(None, [data.strip()])

    def pictures(self) -> list[str]:
        return [attrs["src"] or "" for tag, attrs in self.found if tag == "img"]


def section(html: str, name: str) -> list[str]:
    """Return the text of the section with this heading."""
    (part,) = re.findall(rf'<h2 id="{name}">(.*?)(?=<h2 |\Z)', html, flags=re.S)
    return Elements(part).text


def bars(html: str) -> dict[str, int]:
    """Return the number of captions of each bar of the histogram."""
    found = re.findall(r"<title>(\S+) words: ([\d,]+) captions</title>", html)
    return {words: int(captions.replace(",", "")) for words, captions in found}


def counted(html: str, name: str) -> dict[str, int]:
    """Return the counts in a list of the most frequent words or emoji."""
    found = re.findall(
        r'<span dir="auto">([^<]*)</span><span>([\d,]+)</span>', html.split(f'id="{name}"')[1].split("<h2")[0]
    )
    return {unescape(text): int(count.replace(",", "")) for text, count in found}


def test_all_untrusted_text_is_escaped() -> None:
    names = ("caption", "source", "origin", "file", "before", "after", "checkpoint", "token", "entry", "kept", "lost")
    hostile = {name: f'{name}<script>alert(1)</script>"><img src=x onerror=y>' for name in names}
    one = Example("a.jpg", [hostile["caption"]], "0" * 64, [hostile["source"]], [hostile["origin"]])
    html = render(
        one,
        aside=(SetAside("file", "s", hostile["file"], None, "damaged"),),
        near=((example("b", "x"), one),),
        captions_changed={"count": 1, "examples": [{name: hostile[name] for name in ("before", "after")}]},
        unknown_tokens={
            "checkpoint": hostile["checkpoint"],
            "share": 0.1,
            "unknown": 1,
            "tokens": 10,
            "share_of_words": 0.1,
            "most_frequent": {hostile["token"]: 1},
        },
        cut_captions=CUT | {"examples": [{name: hostile[name] for name in ("kept", "lost")}]},
        excluded={hostile["entry"]: 1},
    )
    elements = Elements(html)
    assert "script" not in {tag for tag, _ in elements.found}
    assert not [attrs for _, attrs in elements.found if "onerror" in attrs]
    for name in names:
        assert hostile[name] in " ".join(elements.text)


def test_the_page_loads_nothing_from_elsewhere() -> None:
    html = render(example("a", "x https://example.org/1.png"), near=((example("b", "y"), example("a", "x")),))
    elements = Elements(html)
    assert len(elements.pictures()) == 3
    assert all(source.startswith("data:image/jpeg;base64,") for source in elements.pictures())
    assert all((attrs["href"] or "").startswith("#") for tag, attrs in elements.found if tag == "a")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in elements.found}
    policy = [attrs["content"] for _, attrs in elements.found if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not re.search(r"url\(|@import", html)


def test_the_examples_in_docstrings_are_correct() -> None:
    found = doctest.testmod(data_page)
    assert found.attempted
    assert not found.failed


def test_links_lead_to_the_sections() -> None:
    html = render(example("a", "x"))
    assert re.findall(r'<a href="#(\w+)">', html) == re.findall(r'<h2 id="(\w+)">', html)


def test_a_page_of_one_picture_with_nothing_set_aside() -> None:
    html = render(example("a", "a red square"))
    assert section(html, "pictures")[2:] == ["train", "s: i.zip:a", "a red square"]
    assert bars(html) == {"3": 1}
    assert section(html, "aside") == ["Set aside", "Nothing was set aside."]
    assert section(html, "near")[1].startswith("No picture has a near-duplicate")


def test_the_first_table_counts_total_kept_and_set_aside() -> None:
    text = Elements(render(example("a", "x"), example("b", "x"), test=(example("c", "x"),))).text
    assert text[text.index("pictures") :][:6] == ["pictures", "1,234", "2", "0", "1", "7"]


def test_the_sample_covers_the_whole_data_set_and_only_its_pictures_are_read() -> None:
    examples = [example(str(k), f"caption of {k}") for k in range(2000)]
    read: Counter[str] = Counter()

    def picture(one: Example) -> bytes:
        read[one.file_name] += 1
        return RED

    html = render(*examples[:1500], test=tuple(examples[1500:]), picture=picture)
    assert sum(read.values()) == len(read) == len(Elements(html).pictures()) == 60
    ranks = sorted(sorted(examples, key=lambda e: e.sha256).index(e) for e in examples if e.file_name in read)
    assert max(np.diff([0, *ranks, 2000])) <= 34
    assert 8 <= html.count('<span class="split">test</span>') <= 22


def test_the_page_does_not_depend_on_the_order_of_its_input() -> None:
    examples = [example(str(k), f"word{k % 50} 🔥" if k % 2 else f"word{k % 50} 🌊") for k in range(200)]
    shuffled = random.Random(1).sample(examples, len(examples))
    assert render(*examples) == render(*shuffled)


def test_long_and_many_captions_are_truncated() -> None:
    many = [f"caption number {k}" for k in range(5000)]
    html = render(example("a", *many), example("b", "y" * 300))
    assert "and 4,994 more" in html
    assert "y" * 300 in html
    assert len(html) < 50_000
    assert len(render(example("a", "x" * 1_000_000))) < 50_000


@pytest.mark.parametrize("lengths", [[1], [7], [3, 9], range(1, 30), [1, 100], range(1, 2000, 7), [5000, 2]])
def test_every_caption_is_counted_in_the_bar_of_its_length(lengths: list[int]) -> None:
    shown = bars(render(*(example(str(k), "word " * k) for k in lengths)))
    ends = [[int(end) for end in words.split("–")] for words in shown]
    assert len(shown) <= 61
    assert list(shown.values()) == [sum(end[0] <= k <= end[-1] for k in lengths) for end in ends]
    assert sum(shown.values()) == len(lengths)


def test_a_histogram_of_few_lengths_has_a_labelled_bar_per_length() -> None:
    html = render(*(example(str(k), "word " * k) for k in (2, 4, 4, 5)))
    assert bars(html) == {"2": 1, "3": 0, "4": 2, "5": 1}
    assert re.findall(r'text-anchor="middle">(\d+)<', html) == ["2", "3", "4", "5"]
    assert "Shortest 2, longest 5, median 4" in " ".join(html.split())


@pytest.mark.parametrize("many", [1, 5, 60, 1000])
def test_the_histogram_has_few_enough_labels_to_read(many: int) -> None:
    html = render(*(example(str(k), "word " * (k + 1)) for k in range(many)))
    assert 1 <= len(re.findall(r'text-anchor="middle">', html)) <= 15


def test_words_are_counted_without_case_punctuation_and_function_words() -> None:
    html = render(example("a", 'The Dog, the "dog" and (DOG) ...', "it's a #dog's Straße — 2 हिन्दी don’t"))
    assert counted(html, "words") == {"dog": 3, "dog's": 1, "strasse": 1, "2": 1, "हिन्दी": 1, "don't": 1}
    assert {"the", "and", "a", "it's"} <= set(section(html, "words")[-1].split(", "))


def test_only_the_most_frequent_words_are_shown() -> None:
    html = render(*(example(str(k), " ".join(f"word{j}" for j in range(k + 1))) for k in range(40)))
    assert list(counted(html, "words").items()) == [(f"word{k}", 40 - k) for k in range(30)]
    assert counted(render(example("a", "this is it")), "words") == {}


def test_emoji_are_counted_by_name_without_skin_tone_and_not_as_words() -> None:
    html = render(example("a", "so 👍 👍🏽 👍🏽 ❤ ❤️ ❤️ ❤️ love", "🔥!! 🇮🇳"))
    assert counted(html, "emoji") == {"❤️ red heart": 4, "👍🏽 thumbs up": 3, "🇮🇳 India": 1, "🔥 fire": 1}
    assert counted(html, "words") == {"love": 1}
    assert "contain no emoji" in section(render(example("a", "no such thing")), "emoji")[1]


def test_each_reason_has_a_description_and_a_few_places() -> None:
    files = [SetAside("file", "one", f"a.zip:{k}.jpg", None, "damaged") for k in range(1200)]
    rows = [
        SetAside("row", "two", "c.csv", 5, "empty"),
        *(SetAside("row", "two", "c.csv", k, "video") for k in (6, 1007)),
    ]
    text = section(render(example("a", "x"), aside=(*rows, *files)), "aside")
    assert text[:7] == ["Set aside", "Pictures and other files", "count", "examples", FILE_REASONS["damaged"],
                        "damaged", "1,200"]  # fmt: skip
    assert text[7:10] == ["one: a.zip:0.jpg", "one: a.zip:400.jpg", "one: a.zip:800.jpg"]
    assert text[13:] == [ROW_REASONS["video"], "video", "2", "two: c.csv, row 6", "two: c.csv, row 1,007",
                         ROW_REASONS["empty"], "empty", "1", "two: c.csv, row 5"]  # fmt: skip


def test_the_page_can_show_every_reason() -> None:
    aside = [SetAside("file", "s", "f", None, code) for code in FILE_REASONS]
    aside += [SetAside("row", "s", "f", 2, code) for code in ROW_REASONS]
    text = section(render(example("a", "x"), aside=tuple(aside)), "aside")
    assert set(text) >= {*FILE_REASONS.values(), *ROW_REASONS.values()}


def test_near_duplicates_are_shown_beside_their_matches() -> None:
    kept = [example(f"kept {k}", "x") for k in range(40)]
    near = tuple((example(f"out {k}", "x"), one) for k, one in enumerate(kept))
    html = render(example("a", "x"), test=tuple(kept), near=near)
    text = section(html, "near")
    assert text[1].startswith("40 pictures were set aside")
    assert "30 are shown" in " ".join(text[1].split())
    cards = [text[k : k + 4] for k in range(4, len(text), 4)]
    assert len(cards) == 30
    for one, out, other, place in cards:
        assert (one, other) == ("set aside", "test")
        assert out.replace("out", "kept") == place


def test_captions_before_and_after_cleaning_are_shown_side_by_side() -> None:
    pairs = [{"before": f"before {k}", "after": "" if k == 0 else f"after {k}"} for k in range(20)]
    text = section(render(example("a", "x"), captions_changed={"count": 1500, "examples": pairs}), "changed")
    assert text[1].startswith("10 of 1,500 captions")
    assert text[-20:] == [
        piece for k in range(0, 20, 2) for piece in (f"before {k}", f"after {k}" if k else "(nothing)")
    ]


def test_unknown_tokens_are_shown_if_there_is_a_tokenizer() -> None:
    told = {"checkpoint": "some/model", "share": 0.0375, "unknown": 30, "tokens": 800, "share_of_words": 0.05}
    told |= {"most_frequent": {"🧿": 29}}
    html = render(example("a", "x"), unknown_tokens=told)
    assert "3.75 % of the caption tokens (30 of 800; 5.00 % of the words) are unknown to some/model" in re.sub(
        r"\s+", " ", html
    )
    assert counted(html, "unknown") == {"🧿": 29}
    none = render(example("a", "x"), unknown_tokens=told | {"share": 0, "unknown": 0, "most_frequent": {}})
    assert counted(none, "unknown") == {}
    assert section(render(example("a", "x")), "unknown")[1].startswith("Not available")


def test_cut_captions_are_shown_with_what_is_lost() -> None:
    html = render(example("a", "x"), cut_captions=CUT | {"examples": [{"kept": "a long", "lost": "caption #end"}]})
    shown = " ".join(section(html, "cut"))
    assert "21 captions (21.0 %)" in shown
    assert "1,300 tokens (27.0 %)" in re.sub(r"\s+", " ", shown)
    assert section(html, "cut")[-2:] == ["a long", "caption #end"]
    assert "No caption is longer" in section(render(example("a", "x"), cut_captions=CUT | {"captions": 0}), "cut")[1]


def test_a_page_with_the_most_and_largest_pictures_stays_small() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    busy = Image.fromarray(noise).resize((256, 256))
    busy.save(buffer := io.BytesIO(), "JPEG", quality=95)
    examples = [example(str(k), *["many words " * 50] * 9) for k in range(100)]
    html = render(*examples, near=tuple(zip(examples, examples, strict=True)), picture=lambda _: buffer.getvalue())
    assert len(Elements(html).pictures()) == 120
    assert len(html) < 3_000_000


def build_from(*sources: str) -> str:
    """Build the data set from these sources; return the last line to print."""
    set_params(Path.cwd(), {"ingest.sources": list(sources)})
    for source in sources:
        ingest.run(params.load(), Namespace(source=source))
    return build.run(params.load(), Namespace())


def test_build_writes_the_same_page_each_time_and_names_it(workspace: Path) -> None:
    write_sample(workspace / "data/raw/sample", pictures=60, seed=3)
    assert build_from("sample").endswith("look at reports/data.html")
    first = Path("reports/data.html").read_bytes()
    html = first.decode()
    for split in SPLITS:
        reader = PictureReader(Path("data/dataset") / split)
        for one in read_examples(Path("data/dataset") / split):
            assert data_url(reader.read(one.file_name), 160) in html
    assert "cut off, or a wrong checksum" in html
    build_from("sample")
    assert Path("reports/data.html").read_bytes() == first


def test_excluded_pictures_are_counted_but_neither_shown_nor_named(workspace: Path, bring: Callable[..., Path]) -> None:
    files = {f"{k}.jpg": photo(k) for k in range(30)} | {"private.jpg": photo(99), "alike.jpg": photo(99, 60)}
    bring("s", files, [[name, f"caption of {name} 🔥🔥"] for name in files])
    set_params(workspace, {"ingest.exclude": [hashlib.sha256(files["private.jpg"]).hexdigest()]})
    build_from("s")
    html = Path("reports/data.html").read_text()
    assert len(Elements(html).pictures()) == 30
    assert "private" not in html
    assert "alike.jpg" not in html
    assert section(html, "excluded")[-1] == "2"


def test_near_duplicates_of_a_build_are_shown_with_their_matches(workspace: Path, bring: Callable[..., Path]) -> None:
    files = {f"{k}-{quality}.jpg": photo(k, quality) for k in range(30) for quality in (60, 95)}
    bring("s", files, [[name, f"picture {name}"] for name in files])
    build_from("s")
    html = Path("reports/data.html").read_text()
    near = section(html, "near")
    origins = {f"s: {one.origins[0]}" for split in SPLITS for one in read_examples(Path("data/dataset") / split)}
    asides = [place for mark, place in pairwise(near) if mark == "set aside"]
    kept = [place for mark, place in pairwise(near) if mark in ("validation", "test")]
    assert len(asides) == len(kept) > 3
    assert set(kept) <= origins
    assert not set(asides) & origins
    assert all(one.split("-")[0] == other.split("-")[0] for one, other in zip(asides, kept, strict=True))
    assert near.index("set aside") < min(near.index(place) for place in kept)
