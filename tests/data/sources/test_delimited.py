from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.errors import DataError
from pipeline.data.sources.delimited import Columns, read_table
from pipeline.data.sources.encodings import decode, decode_names

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
        (b"image,caption\na.jpg,\x81\x00\x8d\n", "line 2 is not UTF-8"),
        (codecs.BOM_UTF16_LE + b"a\0b", "damaged UTF-16"),
    ],
)
def test_damaged_text_is_an_error_and_not_garbled(data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(read_table(data, "x.csv").rows)


ASIAN = {
    "gb18030": "图片,说明\n狗.jpg,一只狗在草地上奔跑\n猫.jpg,猫坐在窗边\n",
    "cp932": "画像,説明\n犬.jpg,犬が芝生を走っています\n猫.jpg,窓辺に座る猫\n",
    "big5": "圖片,說明\n狗.jpg,一隻狗在草地上奔跑\n",
    "euc_kr": "사진,설명\n개.jpg,개가 잔디 위를 달린다\n",
    "cp1251": "фото,текст\nсобака.jpg,Собака бежит по траве\n",
}


@pytest.mark.parametrize("encoding", [*ASIAN, "mac_roman", "utf-16-le", "utf-16-be"])
def test_tables_of_other_scripts_and_of_spreadsheets_are_decoded(encoding: str) -> None:
    text = ASIAN.get(encoding, "image,caption\na.jpg,Café “crème” – schön\n")
    assert decode(text.encode(encoding), "x.csv") == (text, encoding)
    if encoding in ASIAN:
        picture, caption = text.partition("\n")[0].split(",")
        table = read_table(text.encode(encoding), "x.csv", Columns(picture, caption))
        assert next(table.rows)[1] == tuple(text.split("\n")[1].split(","))


def test_names_in_zips_are_decoded() -> None:
    for encoding, names in (
        ("gb18030", ["照片/草地上的狗.jpg", "照片/窗边的猫.jpg"]),
        ("cp932", ["写真/草原を走る犬.jpg", "写真/窓辺に座る猫.jpg"]),
    ):
        raw = [name.encode(encoding) for name in names]
        assert decode_names([name.decode("cp437") for name in raw], raw) == names
    assert decode_names(["café.jpg"], ["café.jpg".encode("cp437")]) == ["café.jpg"]
    assert decode_names(["caf├⌐.jpg"], ["café.jpg".encode()]) == ["café.jpg"]


@given(
    st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(
        lambda t: t[0] != "\ufeff"
    )
)
def test_utf8_is_never_decoded_as_anything_else(text: str) -> None:
    assert decode(text.encode(), "x") == (text, "utf-8")


def test_excels_separator_line_is_read() -> None:
    table = read_table(b'sep=;\r\nimage;caption\r\na.jpg;"one; two"\r\n', "x.csv")
    assert table.delimiter == "semicolon"
    assert list(table.rows) == [(3, ("a.jpg", "one; two"))]
    with pytest.raises(DataError, match="row 2: found the columns a, b"):
        read_table(b"sep=;\na;b\n", "x.csv")


@pytest.mark.parametrize(
    "text",
    [
        "image_name| comment_number| comment\n1.jpg| 0| Two dogs , running .\n",
        'image_name,comment_number,comment\n1.jpg,0,"Two dogs , running ."\n',
        "id;image_path;description\n7;1.jpg;Two dogs , running .\n",
        "filename\ttitle\ttext\n1.jpg\tno\tTwo dogs , running .\n",
    ],
)
def test_the_usual_names_of_columns_are_known(text: str) -> None:
    ((_, row),) = read_table(text.encode(), "x.csv").rows
    assert row is not None
    assert (row[0], row[1].strip()) == ("1.jpg", "Two dogs , running .")


def test_columns_of_other_names_can_be_named() -> None:
    text = b"caption,Foto,Text DE\nno,a.jpg,ein Hund\n"
    assert next(read_table(text, "x.csv", Columns("foto", "Text DE")).rows) == (2, ("a.jpg", "ein Hund"))
    with pytest.raises(DataError, match=r"found the columns caption, Foto, Text DE; .*ingest\.columns"):
        read_table(text, "x.csv")


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
