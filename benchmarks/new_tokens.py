"""What `finetune.new_tokens` changes: real captions, encoded by a checkpoint's tokenizer and decoded again.

    python -m benchmarks.new_tokens captions.csv Caption models/git-demo [FOLDER ...]

Tokens are chosen from four fifths of the captions and measured on the others. The table goes to
benchmarks/results/new_tokens.md.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from pipeline.data.text import clean
from pipeline.evaluation.diversity import emoji_of, hashtags_of, recall
from pipeline.models.new_tokens import choose_new_tokens

SIZES = (0, 100, 500, 2000)
RESULT = Path(__file__).parent / "results" / "new_tokens.md"
HEAD = """# New tokens on real captions

Captions that were not used to choose the tokens, encoded and decoded again. *Unknown words*: the share of words with an
unknown token. *Recall*: the share of a caption's emoji or hashtags that decoding returns. A model that uses the
tokenizer can't say the others. Emoji joined by zero-width joiners are never returned: BERT's normalizer removes these.

| tokenizer | new tokens | unknown words | tokens per caption | recall of emoji | recall of hashtags |
|---|---|---|---|---|---|
"""


def measure(folder: Path, training: Sequence[str], others: Sequence[str], count: int) -> str:
    """Return a row of the table."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    added = choose_new_tokens(tokenizer, training, count)
    tokenizer.add_tokens(added)
    unknown = tokenizer.token_to_id(tokenizer.model.unk_token)
    words = unknown_words = tokens = 0
    decoded = []
    for encoded in tokenizer.encode_batch(list(others), add_special_tokens=False):
        words += len(set(encoded.word_ids))
        unknown_words += len({w for w, id_ in zip(encoded.word_ids, encoded.ids, strict=True) if id_ == unknown})
        tokens += len(encoded.ids)
        decoded.append(tokenizer.decode(encoded.ids))
    references = [[text] for text in others]
    recalls = [recall(decoded, references, of) for of in (emoji_of, hashtags_of)]
    shown = " | ".join("none in the data" if value is None else f"{value:.1%}" for value in recalls)
    share = unknown_words / words
    return f"| {folder.name} | {len(added):,} | {share:.2%} | {tokens / len(others):.1f} | {shown} |\n"


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("column")
    parser.add_argument("checkpoints", type=Path, nargs="+", help="folders with a tokenizer.json")
    args = parser.parse_args()
    with args.table.open(encoding="utf-8", newline="") as file:
        captions = [text for row in csv.DictReader(file) if (text := clean(row[args.column]))]
    training, others = [text for k, text in enumerate(captions) if k % 5], captions[::5]
    rows = [measure(folder, training, others, count) for folder in args.checkpoints for count in SIZES]
    RESULT.write_text(
        HEAD + "".join(rows) + f"\n{len(training):,} captions to choose from, {len(others):,} measured.\n"
    )
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
