"""Captions as people wrote them -> captions to train on."""

from __future__ import annotations

import re
import unicodedata

# Line and paragraph separators, tabs and all other control characters part words like a space does.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_WHITE = re.compile(r"\s+")


def clean(text: str) -> str:
    r"""The caption in Unicode NFC, on one line, with single spaces; empty where nothing is left.

    >>> clean("  two\r\nlines\u2028and\tmore ")
    'two lines and more'
    """
    text = unicodedata.normalize("NFC", text)
    return _WHITE.sub(" ", _CONTROL.sub(" ", text)).strip()
