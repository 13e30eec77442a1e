"""The description of a picture in an XMP sidecar: read it, or add it and keep every other byte of the file.

Sidecars come from strangers. A document type declaration, which could expand to gigabytes or name other files, is
refused, and so is all that is not well-formed UTF-8.

Source: ISO 16684-1 (XMP): `dc:description` is a language alternative, an `rdf:Alt` whose default has `xml:lang`
`x-default`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

MAX_BYTES = 2**23  # of a sidecar; photo managers write a few thousand
_MAX_NAMESPACE = 1_000  # characters; the parser repeats the name of the namespace for each element
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DC = "http://purl.org/dc/elements/1.1/"
_META = "adobe:ns:meta/"
# What `_Found.path` is inside of each element.
_PACKET = [f"{_RDF}RDF"]
_NODE = [*_PACKET, f"{_RDF}Description"]
_PROPERTY = [*_NODE, f"{_DC}description"]
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production Char

_NEW = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="{meta}" x:xmptk="image-captioning">
 <rdf:RDF xmlns:rdf="{rdf}">
{node} </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""


class XmpError(Exception):
    """A sidecar can't be read; the message says why."""


@dataclass
class _Found:
    """What is where in a sidecar. Places are offsets in bytes.

    Attributes:
        path: names of the open elements, from `rdf:RDF` on.
        about: what the properties are about, `rdf:about` of the first `rdf:Description`.
        pieces: of the text in `dc:description`. The parser calls back for every line, and adding each to a string would
            take quadratic time.
        described: start and end of the element `dc:description`; None without one.
        end: where `</rdf:RDF>` starts; None without it.
    """

    path: list[str] = field(default_factory=list)
    about: str | None = None
    pieces: list[str] = field(default_factory=list)
    described: tuple[int, int] | None = None
    end: int | None = None

    @property
    def text(self) -> str:
        """The text in `dc:description`, in all its languages."""
        return "".join(self.pieces).strip()


def description(sidecar: bytes) -> str:
    """Return the description in a sidecar, in all its languages; "" if it has none.

    Raises:
        XmpError: it is not XMP, or is refused.
    """
    return _read(sidecar).text


def described(caption: str, sidecar: bytes | None = None) -> bytes:
    """Return a sidecar with a caption as its description.

    Args:
        caption: the text. Characters that XML does not allow become spaces.
        sidecar: what it is added to, without a description; None for a new sidecar.

    Raises:
        XmpError: the sidecar is not XMP, or is refused, or has a description.
    """
    caption = " ".join(_NOT_XML.sub(" ", caption).split())
    prop = (
        f'<dc:description xmlns:dc="{_DC}" xmlns:rdf="{_RDF}"><rdf:Alt><rdf:li xml:lang="x-default">{escape(caption)}'
        "</rdf:li></rdf:Alt></dc:description>"
    )
    if sidecar is None:
        return _NEW.format(meta=_META, rdf=_RDF, node=_node(prop, "")).encode()
    found = _read(sidecar)
    if found.text:
        raise XmpError("has a description")
    if found.described:
        start, end = found.described
        new = sidecar[:start] + prop.encode() + sidecar[end:]
    elif found.end is not None:
        new = sidecar[: found.end] + _node(prop, found.about or "").encode() + sidecar[found.end :]
    else:
        raise XmpError("has no </rdf:RDF>")
    if description(new) != caption:
        raise XmpError("is of an unknown kind")
    return new


def _node(prop: str, about: str) -> str:
    """Return the properties of a picture. A file may have several such elements with one `rdf:about`."""
    return f'  <rdf:Description xmlns:rdf="{_RDF}" rdf:about={quoteattr(about)}>\n   {prop}\n  </rdf:Description>\n'


def _read(sidecar: bytes) -> _Found:
    if len(sidecar) > MAX_BYTES:
        raise XmpError(f"is larger than {MAX_BYTES >> 20} MB")
    try:
        sidecar.decode()
    except UnicodeDecodeError:
        raise XmpError("is not UTF-8") from None
    found = _Found()
    parser = expat.ParserCreate("UTF-8", namespace_separator="")
    starts: list[int] = []
    is_empty = False  # the innermost element, so far

    def refuse(*declaration: object) -> None:
        raise XmpError("has a document type declaration, which is refused")

    def declare(prefix: str | None, namespace: str | None) -> None:
        if len(namespace or "") > _MAX_NAMESPACE:
            raise XmpError(f"has a namespace whose name is longer than {_MAX_NAMESPACE:,} characters")

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal is_empty
        is_empty = True
        if not found.path and name != f"{_RDF}RDF":
            return
        found.path.append(name)
        starts.append(parser.CurrentByteIndex)
        if found.path == _NODE:
            if found.about is None:
                found.about = attributes.get(f"{_RDF}about", "")
            found.pieces.append(attributes.get(f"{_DC}description", ""))  # the short form of a property

    def end(name: str) -> None:
        nonlocal is_empty
        place = parser.CurrentByteIndex  # of `</name>`, but behind `<name/>`
        closing = not (is_empty and sidecar[place - 2 : place] == b"/>")
        is_empty = False
        if not found.path:
            return
        if found.path == _PROPERTY:
            found.described = (starts[-1], sidecar.index(b">", place) + 1 if closing else place)
        if found.path == _PACKET and closing:
            found.end = place
        found.path.pop()
        starts.pop()

    def text(characters: str) -> None:
        nonlocal is_empty
        is_empty = False
        if found.path[: len(_PROPERTY)] == _PROPERTY:
            found.pieces.append(characters)

    parser.StartDoctypeDeclHandler, parser.StartNamespaceDeclHandler = refuse, declare
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    try:
        parser.Parse(sidecar, True)
    except expat.ExpatError as error:
        raise XmpError(f"is not well-formed XML (line {error.lineno})") from None
    if found.about is None and found.end is None:
        raise XmpError("has no rdf:RDF, so it is not XMP")
    return found
