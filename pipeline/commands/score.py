"""Score captions from files: predictions and references -> BLEU, ROUGE-L, CIDEr-D, CIDEr, METEOR, SPICE with intervals.

`image-captioning score --help` describes the formats of the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.commands import java_metrics
from pipeline.commands.caption_files import read_predictions, read_references
from pipeline.config.errors import ConfigError, DataError
from pipeline.evaluation import bootstrap, diversity
from pipeline.evaluation.caption_tokenizer import CHARACTERS, CaptionTokenizer, tokenizer_for
from pipeline.evaluation.metrics.corpus import Words
from pipeline.evaluation.metrics.registry import notes, score_names
from pipeline.evaluation.metrics.scoring import statistics
from pipeline.runtime.atomic_files import write_json, write_json_lines

_BEYOND = {
    "distinct-1": "distinct words / all words",
    "distinct-2": "distinct word pairs / all word pairs",
    "distinct_captions": "distinct captions / all captions",
    "words": "per caption",
    "reference_words": "per reference",
    "emoji_recall": "share of the references' emoji, over pictures that have any",
    "hashtag_recall": "share of the references' hashtags, over pictures that have any",
    "content_recall": "share of the references' content words (English)",
    "loops": "share of captions that repeat themselves",
    "self-CIDEr": "how much the captions of a picture differ, 0 to 1",
    "mBLEU": "BLEU-4 between the captions of a picture; lower is more diverse",
}


def score_files(
    predictions: Path,
    references: Path | None = None,
    *,
    system: str | None = None,
    json_path: Path | None = None,
    each_path: Path | None = None,
    with_java: bool = True,
    seed: int = 0,
) -> str:
    """Print the table of scores, write the requested files, and return the last line to print.

    Args:
        predictions: the captions of a model.
        references: the captions of people; None if `predictions` contains both.
        system: which system to score if `predictions` has captions of several.
        json_path: where to write the whole report as JSON.
        each_path: where to write the scores of each picture as JSON Lines.
        with_java: whether to compute METEOR and SPICE, which are slow.
        seed: random seed of the bootstrap.

    Raises:
        DataError: a file can't be read, or a prediction has no references.
        ConfigError: an output can't be written.
    """
    captions, people, ignored = _read(predictions, references, system)
    report, each = score_captions(captions, people, seed, with_java)
    if ignored:
        report["warnings"].append(f"{ignored:,} pictures with references have no prediction and are left out")
    print(table(report))
    written = []
    for path, write, content in ((json_path, write_json, report), (each_path, write_json_lines, each)):
        if path:
            try:
                write(path, content)
            except OSError as error:
                raise ConfigError(f"{path}: {error.strerror}; name a place that can be written to") from None
            written.append(str(path))
    line = f"CIDEr-D {report['scores']['CIDEr-D']:.3f} on {report['pictures']:,} pictures"
    return f"{line}; written to {' and '.join(written)}" if written else line


def _read(
    predictions: Path, references: Path | None, system: str | None
) -> tuple[dict[str | int, list[str]], list[list[str]], int]:
    """Return the captions and references of each predicted picture, and the number of pictures without prediction."""
    captions = read_predictions(predictions, system)
    if not captions:
        raise DataError(f"{predictions}: has no captions; write one JSON object a line, with an id and a caption")
    file = references or predictions
    known = read_references(file, beside_predictions=references is None)
    missing = [picture for picture in captions if not known.get(str(picture))]
    if missing:
        shown = ", ".join(map(repr, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{file}: has no references for {len(missing):,} of {len(captions):,} predicted pictures ({shown});"
            " add them, or remove these predictions"
        )
    return captions, [known[str(picture)] for picture in captions], len(known) - len(captions)


def score_captions(
    captions: Mapping[str | int, list[str]],
    references: Sequence[Sequence[str]],
    seed: int = 0,
    with_java: bool = True,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the report and the scores of each picture.

    Args:
        captions: of each picture one or more captions, of which the first is scored.
        references: of the same pictures, in the same order.
        seed: random seed of the bootstrap.
        with_java: whether to compute METEOR and SPICE, which take longer than everything else.
    """
    texts = [several[0] for several in captions.values()]
    tokenizer = tokenizer_for(references)
    predicted = [tokenizer.words(text) for text in texts]
    people = [[tokenizer.words(text) for text in several] for several in references]
    counted = statistics(predicted, people)
    by_java: dict[str, float] = {}
    if tokenizer is CHARACTERS:
        not_computed = dict.fromkeys(java_metrics.NAMES, "needs captions in English")
    elif not with_java:
        not_computed = dict.fromkeys(java_metrics.NAMES, "left out by --no-java")
    else:
        by_java, not_computed = java_metrics.scores(predicted, people)
    beyond = diversity.wording(texts, references)
    beyond["reference_words"] = diversity.mean_length([words for several in people for words in several])
    few = bootstrap.warning(len(texts))
    report = {
        "scores": {**counted.scores(), **by_java},
        "intervals_95": {name: list(ends) for name, ends in bootstrap.intervals(counted, seed).items()},
        "not_computed": not_computed,
        "beyond_overlap": {**beyond, **_diversity(captions, people, tokenizer)},
        "pictures": len(texts),
        "references": sum(map(len, people)),
        "tokenizer": tokenizer.name,
        "warnings": [few] if few else [],
    }
    scores = counted.each()
    each = [{"id": picture, **{n: float(scores[n][i]) for n in score_names()}} for i, picture in enumerate(captions)]
    return report, each


def _diversity(
    captions: Mapping[str | int, list[str]], references: list[list[list[str]]], tokenizer: CaptionTokenizer
) -> dict[str, float]:
    """Return the figures that need two captions or more for every picture; none if one picture has fewer."""
    if any(len(several) < 2 for several in captions.values()):
        return {}
    predicted: list[list[Words]] = [[tokenizer.words(text) for text in several] for several in captions.values()]
    differing = diversity.self_cider(predicted, references)
    return {
        **{f"best_of {name}": value for name, value in diversity.best_of(predicted, references).items()},
        "self-CIDEr": sum(differing) / len(differing),
        "mBLEU": diversity.mutual_bleu(predicted),
    }


def table(report: Mapping[str, Any]) -> str:
    """Return the report as a table for people."""
    lines = [
        f"{report['pictures']:,} pictures, {report['references']:,} references",
        f"words: {report['tokenizer']}",
        "",
        f"{'':<18}{'score':>7}   95 % interval",
    ]
    for name in (*score_names(), *java_metrics.NAMES):
        if name in report["not_computed"]:
            lines.append(f"{name:<18}not computed: {report['not_computed'][name]}")
            continue
        low, high = report["intervals_95"].get(name, (None, None))
        interval = "" if low is None else f"{low:.3f} to {high:.3f}"
        note = f"   {notes()[name]}" if name in notes() else ""
        lines.append(f"{name:<18}{report['scores'][name]:7.3f}   {interval}{note}".rstrip())
    lines.append("")
    for name, value in report["beyond_overlap"].items():
        if value is not None:
            note = "best caption of each picture" if name.startswith("best_of ") else _BEYOND[name]
            lines.append(f"{name.replace('_', ' '):<18}{value:7.3f}   {note}")
    lines += [f"warning: {words}" for words in report["warnings"]]
    return "\n".join(lines)
