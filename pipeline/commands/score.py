"""Score captions: predictions beside references -> BLEU-1..4, ROUGE-L, CIDEr-D, CIDEr, METEOR, SPICE, with intervals.

Predictions are JSON Lines, a picture a line, or COCO's results as they are:
  {"image_id": 42, "caption": "a dog on the beach"}
  {"image_id": 43, "captions": ["a cat", "a cat sleeps"]}      several, the likeliest first: it is scored

References are JSON Lines, a picture or a caption a line, or COCO's annotations as they are:
  {"image_id": 42, "references": ["A dog runs by the sea.", "Dog at the beach"]}
  {"image_id": 43, "caption": "A sleeping cat"}

A picture's id may be `image_id`, `id`, `file_name` or `image`; instead of `references` there may be `captions`,
`caption` or `text`. `reports/evaluate/captions.jsonl` has both in one file, and captions of several systems: name it
once, and one of them with --system.

Pictures of the references without a prediction are left out, as in coco-caption's example; a prediction without
references is an error. METEOR and SPICE need `pip install pycocoevalcap==1.2` and Java.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.errors import ConfigError, DataError
from pipeline.evaluation import bootstrap, diversity
from pipeline.evaluation.inputs import read_predictions, read_references
from pipeline.evaluation.metrics import NAMES, Words, statistics
from pipeline.evaluation.ptb import java
from pipeline.evaluation.ptb.tokens import TOKENIZER, tokenize
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import write_json, write_json_lines

_NOTES = {"CIDEr-D": "what coco-caption calls CIDEr", "CIDEr": "the paper's, without clipping and penalty of length"}
_BEYOND = {
    "distinct-1": "different words over all words",
    "distinct-2": "different pairs of words over all pairs",
    "distinct_captions": "different captions over all captions",
    "words": "a caption",
    "reference_words": "a reference",
    "emoji_recall": "of the references' emoji, of pictures that have any",
    "hashtag_recall": "of the references' hashtags, of pictures that have any",
    "best_of ROUGE-L": "of each picture's captions the best",
    "best_of CIDEr-D": "of each picture's captions the best",
    "best_of CIDEr": "of each picture's captions the best",
    "self-CIDEr": "how much a picture's captions differ, 0 to 1",
    "mBLEU": "BLEU-4 of a picture's captions against each other; lower differs more",
}


def run(args: argparse.Namespace) -> str:
    """Print the table, write what was asked for; returns the last line to print."""
    several, references, left_out = _read(args)
    report, each = scored(several, references, args.seed, with_java=not args.no_java)
    if left_out:
        report["warnings"].append(f"{left_out:,} pictures with references have no prediction and are left out")
    print(table(report))
    written = []
    for path, write, content in ((args.json, write_json, report), (args.each, write_json_lines, each)):
        if path:
            try:
                write(path, content)
            except OSError as error:
                raise ConfigError(f"{path}: {error.strerror}; name a place that can be written to") from None
            written.append(str(path))
    line = f"CIDEr-D {report['scores']['CIDEr-D']:.3f} on {report['pictures']:,} pictures"
    return f"{line}; written to {' and '.join(written)}" if written else line


def _read(args: argparse.Namespace) -> tuple[dict[str | int, list[str]], list[list[str]], int]:
    """The captions and references of each picture that is scored, and how many others have references."""
    several = read_predictions(args.predictions, args.system)
    if not several:
        raise DataError(f"{args.predictions}: has no captions; write one JSON object a line, with an id and a caption")
    file = args.references or args.predictions
    known = read_references(file, beside_predictions=args.references is None)
    missing = [picture for picture in several if not known.get(str(picture))]
    if missing:
        shown = ", ".join(map(repr, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{file}: has no references for {len(missing):,} of {len(several):,} predicted pictures ({shown});"
            " add them, or take these predictions out"
        )
    return several, [known[str(picture)] for picture in several], len(known) - len(several)


def scored(
    several: Mapping[str | int, list[str]], references: Sequence[Sequence[str]], seed: int = 0, with_java: bool = True
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All that is told of captions, and the scores of each picture.

    Args:
        several: the captions of each picture, the first of which is scored.
        references: of the same pictures, in the same order.
        seed: of the bootstrap.
        with_java: whether METEOR and SPICE are computed, which takes longer than all else.
    """
    texts = [captions[0] for captions in several.values()]
    said = [tokenize(text) for text in texts]
    people = [[tokenize(text) for text in captions] for captions in references]
    counted = statistics(said, people)
    by_java, not_computed = (
        java.scores(said, people) if with_java else ({}, dict.fromkeys(java.NAMES, "left out by --no-java"))
    )
    beyond = diversity.wording(texts, references)
    beyond["reference_words"] = diversity.mean_length([words for captions in people for words in captions])
    few = bootstrap.warning(len(texts))
    report = {
        "scores": {**counted.scores(), **by_java},
        "intervals_95": {name: list(ends) for name, ends in bootstrap.intervals(counted, seed).items()},
        "not_computed": not_computed,
        "beyond_overlap": {**beyond, **_of_several(several, people)},
        "pictures": len(texts),
        "references": sum(map(len, people)),
        "tokenizer": TOKENIZER,
        "warnings": [few] if few else [],
    }
    scores = counted.each()
    each = [{"id": picture, **{n: float(scores[n][i]) for n in NAMES}} for i, picture in enumerate(several)]
    return report, each


def _of_several(several: Mapping[str | int, list[str]], references: list[list[list[str]]]) -> dict[str, float]:
    """What can be told only where every picture has two captions or more."""
    if any(len(captions) < 2 for captions in several.values()):
        return {}
    said: list[list[Words]] = [[tokenize(text) for text in captions] for captions in several.values()]
    differing = diversity.self_cider(said, references)
    return {
        **{f"best_of {name}": value for name, value in diversity.best_of(said, references).items()},
        "self-CIDEr": sum(differing) / len(differing),
        "mBLEU": diversity.mutual_bleu(said),
    }


def table(report: Mapping[str, Any]) -> str:
    """The report as a person reads it."""
    lines = [
        f"{report['pictures']:,} pictures, {report['references']:,} references",
        f"words: {report['tokenizer']}",
        "",
        f"{'':<18}{'score':>7}   95 % interval",
    ]
    for name in (*NAMES, *java.NAMES):
        if name in report["not_computed"]:
            lines.append(f"{name:<18}not computed: {report['not_computed'][name]}")
            continue
        low, high = report["intervals_95"].get(name, (None, None))
        interval = "" if low is None else f"{low:.3f} to {high:.3f}"
        note = f"   {_NOTES[name]}" if name in _NOTES else ""
        lines.append(f"{name:<18}{report['scores'][name]:7.3f}   {interval}{note}".rstrip())
    lines.append("")
    for name, value in report["beyond_overlap"].items():
        if value is not None:
            lines.append(f"{name.replace('_', ' '):<18}{value:7.3f}   {_BEYOND[name]}")
    lines += [f"warning: {words}" for words in report["warnings"]]
    return "\n".join(lines)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("predictions", type=Path, metavar="PREDICTIONS", help="what a model said")
    parser.add_argument(
        "references", type=Path, nargs="?", metavar="REFERENCES", help="what people say (default: PREDICTIONS has both)"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all of it as JSON")
    parser.add_argument("--each", type=Path, metavar="OUT", help="write the scores of each picture as JSON Lines")
    parser.add_argument("--system", metavar="NAME", help="of which system, where PREDICTIONS has captions of several")
    parser.add_argument("--no-java", action="store_true", help="leave METEOR and SPICE out, which take long")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals' resamples (default: %(default)s)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pipeline.commands.score", description=__doc__)
    _arguments(parser)
    parsed = parser.parse_args()
    sys.exit(entrypoint.execute("score", lambda: run(parsed), needs_params=False))
