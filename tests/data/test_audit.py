from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.audit import SetAside, read_set_aside, write_set_aside


@pytest.mark.parametrize("name", ["a\rb.jpg", "a\nb.jpg", 'a",b.jpg', "=a.jpg", "\r"])
def test_a_strange_name_is_read_back_as_it_was_written(tmp_path: Path, name: str) -> None:
    items = [
        SetAside("file", "mine", name, None, "not_a_picture", ""),
        SetAside("row", "mine", "captions.csv", 3, "picture_ambiguous", name),
    ]
    write_set_aside(tmp_path / "set_aside.csv", items)
    assert list(read_set_aside(tmp_path / "set_aside.csv")) == items
