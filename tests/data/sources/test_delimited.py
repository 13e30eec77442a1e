from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.errors import DataError
from pipeline.data.sources.delimited import decode, read_table

TEXT = "image,caption\na.jpg,Café “crème” – 5 €\nb.jpg,naïve\n"


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [("utf-8", b""), ("utf-8-sig", b""), ("utf-16", b""), ("utf-16-be", codecs.BOM_UTF16_BE), ("cp1252", b"")],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_table_is_read_in_every_common_encoding(encoding: str, mark: bytes, line_end: str) -> None:
    table = read_table(mark + TEXT.replace("\n", line_end).encode(encoding), "x.csv")
    assert list(table.rows) == [(2, ("a.jpg", "Café “crème” – 5 €")), (3, ("b.jpg", "naïve"))]
    assert table.encoding == encoding.removesuffix("-be")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (TEXT.encode() + b"c.jpg,\xff\n", "line 4 is not UTF-8"),
        (TEXT.encode()[:-2] + "é".encode()[:1], "line 3 is not UTF-8"),
        (b"image,caption\na.jpg,\x81\x8d\n", "line 2 is not UTF-8"),  # bytes that cp1252 does not have
        (codecs.BOM_UTF16_LE + b"a\0b", "damaged UTF-16"),
        ("image,caption\na.jpg,café".encode("utf-16-le"), "x.csv: "),
    ],
)
def test_damaged_text_is_an_error_and_not_garbled(data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(read_table(data, "x.csv").rows)


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1).filter(lambda t: t[0] != "\ufeff"))
def test_utf8_is_never_decoded_as_anything_else(text: str) -> None:
    assert decode(text.encode(), "x") == (text, "utf-8")


@pytest.mark.parametrize(("delimiter", "called"), [(",", "comma"), (";", "semicolon"), ("\t", "tab")])
def test_the_header_determines_the_delimiter(delimiter: str, called: str) -> None:
    text = '"Image"; "Caption"\na.jpg;"one; two\r\nthree"\n\n"b.jpg";x, y\n'.replace("; ", ";", 1).replace(
        ";", delimiter
    )
    table = read_table(text.encode(), "x.csv")
    quoted = f"one{delimiter} two\r\nthree"
    rows = list(table.rows)
    assert table.delimiter == called
    assert rows[0] == (2, ("a.jpg", quoted))
    assert rows[1] == (4, None if delimiter == "," else ("b.jpg", "x, y"))


def test_a_table_without_a_header_has_number_picture_and_caption() -> None:
    rows = list(read_table(b'1,img2/insta1,"two\nlines #tag"\n2,img2/insta2,\n', "x.csv").rows)
    assert rows == [(1, ("img2/insta1", "two\nlines #tag")), (2, ("img2/insta2", ""))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no rows"),
        ("\n \n", "has no rows"),
        ("a,b,c\n", "found the columns a, b, c"),
        ("a;b\n", "found the columns a, b"),
        ('image,caption\na,"b\n', "row 2: "),
        ('image,caption\na,"b"c\n', "row 2: "),
        ('"image,caption\na,b\n', "row 1: "),
    ],
)
def test_the_error_for_an_unreadable_table_names_the_row(text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(read_table(text.encode(), "x.csv").rows)
