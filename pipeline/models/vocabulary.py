"""Count the words that a checkpoint's tokenizer does not know, before training on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.sections.finetune import CREATED, REGISTERED

_TOKENIZER = "tokenizer.json"
_MOST_SHOWN = 20


@dataclass(frozen=True)
class Unknown:
    """Unknown tokens in a set of captions.

    Attributes:
        tokens: number of tokens of all captions, without begin and end marks.
        unknown: number of unknown tokens among them.
        most: the most frequent unknown pieces of text, and their counts.
    """

    tokens: int
    unknown: int
    most: list[tuple[str, int]]

    @property
    def share(self) -> float:
        """The share of tokens that is unknown."""
        return self.unknown / max(1, self.tokens)


def unknown_tokens(checkpoint: str, revision: str | None, captions: Sequence[str]) -> Unknown | None:
    """Count the tokens of captions that the checkpoint's tokenizer does not know.

    Args:
        checkpoint: a folder, or a name on the hub, from which only the tokenizer is downloaded.
        revision: the commit of a hub name.
        captions: cleaned captions.

    Returns:
        None if there is no `tokenizer.json` to check: for models that are created, which train their own; for a
        registered version, which is not downloaded here; or if the hub is unreachable, which fine-tuning will report.
    """
    from tokenizers import Tokenizer

    file = _tokenizer_file(checkpoint, revision)
    if file is None:
        return None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # the library raises bare Exceptions for unreadable files
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
    if checkpoint in CREATED or checkpoint.startswith(REGISTERED):
        return None
    if Path(checkpoint).is_dir():
        file = Path(checkpoint) / _TOKENIZER
        return file if file.is_file() else None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(checkpoint, _TOKENIZER, revision=revision))
    except Exception:  # including those of the HTTP library
        return None
