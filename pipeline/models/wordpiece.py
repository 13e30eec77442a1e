"""Captions -> a WordPiece tokenizer trained on them, for models that start from random weights."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def train_wordpiece(captions: Iterable[str], size: int, max_tokens: int) -> PreTrainedTokenizerFast:
    """Train a lower-case tokenizer that marks the begin of a caption with [CLS] and its end with [SEP].

    The same captions always produce the same vocabulary.

    Args:
        captions: the training texts.
        size: maximum size of the vocabulary.
        max_tokens: default length to truncate to.
    """
    captions = list(captions)
    normalizer = normalizers.BertNormalizer(lowercase=True)
    # Like BERT's, but each emoji is a separate word: otherwise two adjacent emoji form a word never seen before.
    emoji = pre_tokenizers.Split(Regex(r"[\p{So}\p{Sk}]"), "isolated")
    pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), emoji])
    words = {word for c in captions for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(c))}
    # The trainer numbers pieces like "##a" in the order of a hash map, so the same captions produce a different
    # vocabulary each time (huggingface/tokenizers#1794). Passing all of them as special tokens fixes their order.
    inner = sorted({f"##{letter}" for word in words for letter in word[1:]})
    trained = Tokenizer(models.WordPiece(unk_token=_SPECIAL["unk_token"]))
    trained.normalizer, trained.pre_tokenizer = normalizer, pre_tokenizer
    special_tokens = [*_SPECIAL.values(), *inner]
    # Words that occur once are split into pieces: an embedding seen once learns nothing.
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=2, special_tokens=special_tokens, show_progress=False
    )
    trained.train_from_iterator(captions, trainer)

    tokenizer = Tokenizer(models.WordPiece(vocab=trained.get_vocab(), unk_token=_SPECIAL["unk_token"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    # Decode as people write: "#sunset" and "can't", not "# sunset" and "can ' t".
    closed = [decoders.Replace(apart, together) for apart, together in (("# ", "#"), (" ' ", "'"), (" :", ":"))]
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(), decoders.Fuse(), *closed])
    begin, end = _SPECIAL["cls_token"], _SPECIAL["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        special_tokens=[(begin, tokenizer.token_to_id(begin)), (end, tokenizer.token_to_id(end))],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_tokens, **_SPECIAL)
