"""Count what a checkpoint's tokenizer loses of captions before training on them: unknown words and cut captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import paths
from pipeline.config.errors import ConfigError
from pipeline.config.sections.finetune import CREATED, REGISTERED, Finetune
from pipeline.models.new_tokens import choose_new_tokens

_TOKENIZER = "tokenizer.json"
_MOST_SHOWN = 20
_BATCH = 10_000  # captions tokenized at a time, which bounds memory


@dataclass
class TokenCounts:
    """What the tokenizer of a checkpoint loses of a set of captions.

    Attributes:
        checkpoint: the folder, or the name on the hub.
        max_tokens: the length that training cuts captions at, begin and end tokens included.
        captions: number of captions.
        tokens: number of tokens of all captions, without begin and end tokens.
        unknown: the pieces of text that are unknown tokens, and their counts.
        words: number of words, as the tokenizer splits them before it looks them up (punctuation included).
        unknown_words: number of words that contain an unknown token.
        cut: the captions that are cut: the part that is kept, and the part that is lost.
        lost_tokens: number of tokens that are cut off.
    """

    checkpoint: str
    max_tokens: int
    captions: int = 0
    tokens: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    words: int = 0
    unknown_words: int = 0
    cut: list[tuple[str, str]] = field(default_factory=list)
    lost_tokens: int = 0

    @property
    def unknown_share(self) -> float:
        """The share of words that are unknown."""
        return self.unknown_words / max(1, self.words)

    @property
    def cut_share(self) -> float:
        """The share of captions that are cut."""
        return len(self.cut) / max(1, self.captions)

    def unknown_report(self) -> dict[str, Any]:
        """Return the unknown tokens and words for `reports/build.json`."""
        return {
            "checkpoint": self.checkpoint,
            "share": round(self.unknown.total() / max(1, self.tokens), 6),
            "unknown": self.unknown.total(),
            "tokens": self.tokens,
            "words": self.words,
            "unknown_words": self.unknown_words,
            "share_of_words": round(self.unknown_share, 6),
            "most_frequent": dict(self.unknown.most_common(_MOST_SHOWN)),
        }

    def cut_report(self) -> dict[str, Any]:
        """Return the cut captions for `reports/build.json`, with examples spread by the length of what is lost."""
        by_loss = sorted(self.cut, key=lambda parts: (len(parts[1]), parts))
        count = min(_MOST_SHOWN, len(by_loss))
        examples = [by_loss[i * len(by_loss) // count] for i in range(count)]
        return {
            "max_tokens": self.max_tokens,
            "captions": len(self.cut),
            "share": round(self.cut_share, 6),
            "tokens": self.lost_tokens,
            "share_of_tokens": round(self.lost_tokens / max(1, self.tokens), 6),
            "examples": [{"kept": kept, "lost": lost} for kept, lost in examples],
        }

    def describe_unknown(self) -> str:
        """Return the unknown words in a sentence."""
        pieces = " ".join(piece for piece, _ in self.unknown.most_common(8))
        return (
            f"{self.unknown_share:.1%} of the caption words are unknown to {self.checkpoint} (most frequent: {pieces})"
        )

    def describe_cut(self) -> str:
        """Return the cut captions in a sentence."""
        lost = self.lost_tokens / max(1, self.tokens)
        return (
            f"{len(self.cut):,} captions ({self.cut_share:.1%}) are longer than finetune.max_tokens = {self.max_tokens}"
            f" and will be cut, which loses {lost:.1%} of all tokens"
        )

    def check(self, max_unknown: float, max_cut: float) -> None:
        """Check that not too much is lost.

        Args:
            max_unknown: the largest share of words that may be unknown.
            max_cut: the largest share of captions that may be cut.

        Raises:
            ConfigError: more is lost; names the params to change.
        """
        if self.unknown_share > max_unknown:
            raise ConfigError(
                f"{paths.PARAMS}: finetune.checkpoint: {self.describe_unknown()}, more than build.max_unknown_words ="
                f" {max_unknown:g} allows; set finetune.checkpoint to one for this language, or to `scratch`, which"
                " learns the words of your captions, or add the words with finetune.new_tokens; if they are emoji, set"
                " build.captions.emoji to `words`"
            )
        if self.cut_share > max_cut:
            raise ConfigError(
                f"{paths.PARAMS}: finetune.max_tokens: {self.describe_cut()}, and build.max_cut_captions ="
                f" {max_cut:g}; raise finetune.max_tokens, lower build.captions.max_words, or raise the limit"
            )


def count_tokens(settings: Finetune, captions: Sequence[str], training_captions: Sequence[str]) -> TokenCounts | None:
    """Count what the checkpoint's tokenizer, with the new tokens of the params, loses of captions.

    Args:
        settings: name the checkpoint (of a name on the hub only the tokenizer is downloaded), the length that training
            cuts captions at, and the number of tokens to add.
        captions: the cleaned captions of all splits.
        training_captions: those from which new tokens are chosen.

    Returns:
        None if there is no `tokenizer.json` to check: for models that are created, which train their own; for a
        registered version, which is not downloaded here; or if the hub is unreachable, which fine-tuning will report.
    """
    from tokenizers import Tokenizer

    file = _tokenizer_file(settings.checkpoint, settings.revision)
    if file is None:
        return None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # the library raises bare Exceptions for unreadable files
        return None
    token = getattr(tokenizer.model, "unk_token", None)
    unknown = tokenizer.token_to_id(token) if token else None
    if token and unknown is None:
        raise unknown_token_missing(file, token)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_tokens(choose_new_tokens(tokenizer, training_captions, settings.new_tokens))
    room = max(1, settings.max_tokens - tokenizer.num_special_tokens_to_add(is_pair=False))
    counts = TokenCounts(settings.checkpoint, settings.max_tokens)
    for caption, encoded in _encode(tokenizer, captions):
        counts.captions += 1
        counts.tokens += len(encoded.ids)
        places = [place for place, id_ in enumerate(encoded.ids) if id_ == unknown]
        counts.unknown.update(caption[slice(*encoded.offsets[place])] for place in places)
        counts.words += len({word for word in encoded.word_ids if word is not None})
        counts.unknown_words += len({encoded.word_ids[place] for place in places})
        if len(encoded.ids) > room:
            end = encoded.offsets[room - 1][1]
            counts.cut.append((caption[:end], caption[end:]))
            counts.lost_tokens += len(encoded.ids) - room
    return counts


def unknown_token_missing(file: Path, token: str) -> ConfigError:
    """Return the error about a tokenizer that would fail at the first unknown word."""
    return ConfigError(
        f"{file}: unk_token: {token[:40]!r} is not in the vocabulary; download or copy the checkpoint again"
    )


def _encode(tokenizer: Any, captions: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield each caption with its encoding, without begin and end tokens."""
    for start in range(0, len(captions), _BATCH):
        batch = list(captions[start : start + _BATCH])
        yield from zip(batch, tokenizer.encode_batch(batch, add_special_tokens=False), strict=True)


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
