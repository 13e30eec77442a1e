"""Which words a checkpoint's tokenizer does not know, before anything is trained on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.sections.finetune import REGISTERED

_TOKENIZER = "tokenizer.json"
_MOST_SHOWN = 20


@dataclass(frozen=True)
class Unknown:
    """How much of some captions a tokenizer does not know.

    Attributes:
        tokens: of all captions, without those that mark beginning and end.
        unknown: how many of these stand for something that the tokenizer does not know.
        most: the most frequent such pieces of text, and how often each.
    """

    tokens: int
    unknown: int
    most: list[tuple[str, int]]

    @property
    def share(self) -> float:
        """The part of the tokens that is unknown."""
        return self.unknown / max(1, self.tokens)


def unknown_tokens(checkpoint: str, revision: str | None, captions: Sequence[str]) -> Unknown | None:
    """What the checkpoint's tokenizer does not know of the captions.

    Args:
        checkpoint: a folder, or a name on the hub, of which only the tokenizer is fetched.
        revision: the commit of a hub name.
        captions: as they will be trained on.

    Returns:
        None where there is no tokenizer yet (`scratch` makes its own of the captions), none as one
        `tokenizer.json`, where it is with a registered version, which this does not ask for, or where the hub can't be
        reached: fine-tuning will say so in its own words.
    """
    from tokenizers import Tokenizer

    file = _tokenizer_file(checkpoint, revision)
    if file is None:
        return None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # the library raises bare Exceptions on files that it can't read
        return None
    token = getattr(tokenizer.model, "unk_token", None)
    unknown = tokenizer.token_to_id(token) if token else None
    tokenizer.no_truncation()
    tokens, pieces = 0, Counter[str]()
    for caption, encoded in zip(
        captions, tokenizer.encode_batch(list(captions), add_special_tokens=False), strict=True
    ):
        tokens += len(encoded.ids)
        pieces.update(
            caption[start:end] for id_, (start, end) in zip(encoded.ids, encoded.offsets, strict=True) if id_ == unknown
        )
    return Unknown(tokens, pieces.total(), pieces.most_common(_MOST_SHOWN))


def _tokenizer_file(checkpoint: str, revision: str | None) -> Path | None:
    if checkpoint == "scratch" or checkpoint.startswith(REGISTERED):
        return None
    if Path(checkpoint).is_dir():
        file = Path(checkpoint) / _TOKENIZER
        return file if file.is_file() else None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(checkpoint, _TOKENIZER, revision=revision))
    except Exception:  # down to the HTTP library's own
        return None
