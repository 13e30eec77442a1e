"""Find the words of the training captions that a tokenizer lacks: `finetune.new_tokens`.

These are words, hashtags and emoji that it knows only in pieces or not at all. `Checkpoint.add_new_tokens` adds them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import regex
from tokenizers import AddedToken, Tokenizer

# A hashtag; a sign, which is an emoji (a flag, a keycap, or a pictograph with its skin tone), an ideograph or a
# punctuation mark; any other word.
_HASHTAG = r"#\w*\p{L}\w*"
_EMOJI = r"\p{RI}\p{RI}|[0-9*#]\uFE0F?\u20E3|\p{Extended_Pictographic}\p{EMod}?"
_ITEM = regex.compile(
    rf"(?P<hashtag>{_HASHTAG})|(?P<sign>{_EMOJI}|\p{{Han}}|[^\w\s])|(?P<word>[\w&&[^\p{{Han}}]]+)", regex.V1
)
_FEWEST = 2  # an embedding that is trained on a single caption learns nothing


def choose_new_tokens(tokenizer: Tokenizer, captions: Iterable[str], count: int) -> list[AddedToken]:
    """Return the tokens to add, at most `count`: what the tokenizer can't say first, then by frequency.

    Words that occur once are left out.

    Args:
        tokenizer: stays as it is.
        captions: the training captions.
        count: `finetune.new_tokens`.
    """
    if not count:
        return []
    normalizer = tokenizer.normalizer
    found: Counter[tuple[str, bool]] = Counter()
    for caption in captions:
        text = normalizer.normalize_str(caption) if normalizer else caption
        # "A dog, a dog": an item counts once per caption, so that one long list of hashtags does not decide.
        found.update({(match[0], match.lastgroup != "sign") for match in _ITEM.finditer(text)})
    candidates = []
    for (text, is_word), captions_with_it in found.items():
        pieces = known_pieces(tokenizer, text)
        if captions_with_it >= _FEWEST and pieces != [tokenizer.token_to_id(text)]:
            candidates.append((bool(pieces) and _says(tokenizer, text, pieces), -captions_with_it, text, is_word))
    # A word must not match inside a longer one; signs follow each other without spaces.
    return [AddedToken(text, single_word=is_word) for *_, text, is_word in sorted(candidates)[:count]]


def known_pieces(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the tokens of a text without unknown ones."""
    unknown = getattr(tokenizer.model, "unk_token", None)
    encoded = tokenizer.encode(text, add_special_tokens=False)
    known = zip(encoded.ids, encoded.tokens, encoded.attention_mask, strict=True)
    return [id_ for id_, token, is_text in known if is_text and token != unknown]


def _says(tokenizer: Tokenizer, text: str, pieces: list[int]) -> bool:
    """Return whether decoding the pieces returns the text."""
    return bool(tokenizer.decode(pieces) == text)
