"""XMP sidecars: the description is added, and every other byte is kept."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.serving.xmp import MAX_BYTES, XmpError, described, description

# As Lightroom writes them, shortened.
SIDECAR = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0-c000">
 <!-- é --><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="uuid:1&amp;2" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:d="http://purl.org/dc/elements/1.1/" xmp:Rating="4">
   <d:subject><rdf:Bag><rdf:li>holiday &lt;3</rdf:li></rdf:Bag></d:subject>{}
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
DC = "{http://purl.org/dc/elements/1.1/}"


def sidecar(more: str = "") -> bytes:
    return SIDECAR.format(more).encode()


def texts(xmp: bytes) -> list[str | None]:
    """The default descriptions, found by another parser."""
    root = ElementTree.fromstring(xmp)
    return [
        item.text
        for found in root.iter(f"{DC}description")
        for item in found.iter(f"{RDF}li")
        if item.get("{http://www.w3.org/XML/1998/namespace}lang") == "x-default"
    ]


@given(st.text(min_size=1))
def test_any_caption_becomes_the_description_of_a_new_sidecar(caption: str) -> None:
    new = described(caption)
    assert len(texts(new)) == 1
    assert description(new).split() == (texts(new)[0] or "").split()
    assert set(description(new)) <= {*caption, " "}


@pytest.mark.parametrize(
    "empty",
    [
        "<d:description/>",
        "<d:description></d:description>",
        '<d:description  rdf:x="/>"></d:description>',
        '<d:description><rdf:Alt><rdf:li xml:lang="x-default"/></rdf:Alt></d:description>',
        '<d:description><rdf:Alt><rdf:li xml:lang="x-default"> </rdf:li></rdf:Alt></d:description>',
        "<d:description><!-- /></d:description> --></d:description>",
        "",
    ],
)
def test_a_description_is_added_and_no_other_byte_changes(empty: str) -> None:
    before = sidecar(empty)
    after = described('a "dog" & a <cat>', before)
    assert texts(after) == ['a "dog" & a <cat>']
    start, end = after.index(b"<dc:description"), after.index(b"</dc:description>") + len(b"</dc:description>")
    if empty:
        assert after[:start] + empty.encode() + after[end:] == before
    else:
        node = after.rindex(b"<rdf:Description", 0, start) - 2
        assert after[:node] + after[after.index(b"</rdf:Description>\n", end) + 19 :] == before
        assert ElementTree.fromstring(after).findall(f".//{RDF}Description")[1].get(f"{RDF}about") == "uuid:1&2"
    with pytest.raises(XmpError, match="has a description"):
        described("another", after)


@pytest.mark.parametrize(
    "own",
    [
        '<d:description><rdf:Alt><rdf:li xml:lang="x-default">mine</rdf:li></rdf:Alt></d:description>',
        '<d:description><rdf:Alt><rdf:li xml:lang="de">mine</rdf:li></rdf:Alt></d:description>',
        "<d:description>mine</d:description>",
        '<d:description><rdf:Alt><rdf:li xml:lang="x-default"><![CDATA[mine]]></rdf:li></rdf:Alt></d:description>',
    ],
)
def test_what_a_person_wrote_is_found_in_every_form(own: str) -> None:
    assert description(sidecar(own)) == "mine"
    short = sidecar().replace(b'xmp:Rating="4"', b'xmp:Rating="4" d:description="mine"')
    assert description(short) == "mine"
    title = sidecar('<d:title><rdf:Alt><rdf:li xml:lang="x-default">t</rdf:li></rdf:Alt></d:title>')
    assert description(title) == ""


BOMB = "".join(f'<!ENTITY e{k} "{f"&e{k - 1};" * 100 if k else "x" * 100}">' for k in range(10))


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"", "not well-formed"),
        (b"\xff\xd8\xff", "not UTF-8"),
        (sidecar().decode().encode("utf-16"), "not UTF-8"),
        (sidecar()[:-60], "not well-formed"),
        (b"<html/>", "has no rdf:RDF"),
        (sidecar().replace(b"<x:xmpmeta", b"<!DOCTYPE x [" + BOMB.encode() + b"]><x:xmpmeta"), "document type"),
        (sidecar().replace(b"<x:xmpmeta", b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><x:xmpmeta'), "document type"),
        (sidecar('<n:a xmlns:n="' + "x" * 4_000_000 + '">' + "<n:b/>" * 400_000 + "</n:a>"), "a namespace whose name"),
        (b" " * (MAX_BYTES + 1), "larger than 8 MB"),
    ],
)
def test_what_is_not_xmp_or_unsafe_is_refused(bad: bytes, why: str) -> None:
    for work in (description, lambda xmp: described("a dog", xmp)):
        with pytest.raises(XmpError, match=why):
            work(bad)


def test_a_sidecar_of_millions_of_lines_is_read_in_seconds() -> None:
    """It comes from a stranger, and quadratic time would be minutes."""
    lines = "\n" * 2_000_000
    start = time.process_time()
    assert description(sidecar(f"<d:description>{lines}a dog{lines}</d:description>")) == "a dog"
    assert time.process_time() - start < 30


@pytest.mark.skipif(not shutil.which("exiftool"), reason="needs exiftool (Debian's libimage-exiftool-perl)")
@pytest.mark.parametrize("before", [None, sidecar(), sidecar("<d:description/>")])
def test_exiftool_reads_the_description_and_the_rest(tmp_path: Path, before: bytes | None) -> None:
    place = tmp_path / "photo.jpg.xmp"
    place.write_bytes(described("a dog & a café 🔥", before))
    words = ["exiftool", "-validate", "-warning", "-s3", "-XMP-dc:Description", "-XMP-xmp:Rating", "-XMP-dc:Subject"]
    found = subprocess.run([*words, str(place)], capture_output=True, text=True, check=True, encoding="utf-8")
    kept = ["4", "holiday <3"] if before else []
    assert found.stdout.splitlines() == ["OK", "a dog & a café 🔥", *kept], found
