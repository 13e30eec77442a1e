"""Promotion: a registered version against the champion, on the current test pictures.

The alias `champion` in MLflow's registry names the version in use. Both versions caption the same test pictures.
Pictures that either version was trained on, and their near-duplicates, do not count. The rule in params.yaml
(`promote`) decides. The alias moves last, after everything else is recorded. Promotion is not a stage of dvc.yaml:
DVC does not see the registry.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.config import paths
from pipeline.config.errors import ConfigError, DataError, TemporaryError
from pipeline.config.params import Params
from pipeline.data.dataset import Example, PictureReader, fair_share, read_examples
from pipeline.data.fingerprints import fingerprints_of, read_fingerprints
from pipeline.evaluation.caption_tokenizer import tokenizer_for
from pipeline.evaluation.diversity import distinct_captions
from pipeline.evaluation.metrics.scoring import Statistics, statistics
from pipeline.runtime.atomic_files import read_json, remove, sha256_of, swapped_in, write_json
from pipeline.runtime.entrypoint import Done
from pipeline.tracking import champions, downloads, registry
from pipeline.tracking.captioners import find_captioner
from pipeline.tracking.comparison import comparisons_of_version
from pipeline.tracking.decision import AT, DECISION, REASONS, VOTES, WAITS
from pipeline.tracking.gate import Verdict, check_metric, gain, verdict

_KEPT = 16  # files of captions; the newest stay


@dataclass(frozen=True)
class _Scored:
    """The tokenized captions of a version for the compared pictures, and their statistics."""

    words: list[list[str]]
    statistics: Statistics

    def figures(self) -> dict[str, float]:
        return {**self.statistics.scores(), "distinct_captions": distinct_captions(self.words)}


def promote(
    params: Params,
    *,
    challenger: int | None = None,
    unless_rolled_back: bool = False,
    since: float = math.inf,
    dry_run: bool = False,
    force: bool = False,
) -> Done:
    """Compare a version with the champion, and make it the champion if it is better.

    Args:
        params: all of params.yaml.
        challenger: the version; None for the newest.
        unless_rolled_back: whether to keep out a named version that was rolled back (the newest always is).
        since: if the challenger became champion after this time (seconds since 1970), report that promotion again:
            the run that decided it was cut off.
        dry_run: whether to change nothing.
        force: whether to promote the version even if the rule is against it; the reasons are recorded all the same.

    Returns:
        the last line to print, and the report that is also written to reports/promote.json.

    Raises:
        ConfigError: there is no such version, or no test split.
        DataError: no test picture can be compared.
        TemporaryError: MLflow can't be reached, or the champion changed meanwhile.
    """
    from pipeline.tracking import runs

    check_metric(params.promote)
    model = params.register_.model
    with runs.reachable():
        store = runs.client()
        numbers = champions.versions(store, model)
        champion = registry.champion(store, model)
        if not (paths.DATASET / "test").is_dir():
            raise DataError(f"{paths.DATASET / 'test'}: not found; run `dvc repro build`")
        number = _challenger(numbers, challenger, model)
        if number == champion:
            report = _promoted_since(store, model, champion, since)
            return _finish(
                report or _report(model, "kept", champion, champion, ["it is already champion"], {}), dry_run
            )
        rolled_back = registry.ROLLED_BACK in registry.tags(store, model, number)
        if rolled_back and not force and (challenger is None or unless_rolled_back):
            reasons = [f"it was rolled back; compare it again with `--challenger {number}`"]
            return _finish(_report(model, "kept", number, champion, reasons, {}), dry_run)
        outcome, figures = _compare(store, params, number, champion)
        decision = _decision(outcome, params.promote.approval, champion, force)
        if force and not outcome.promoted:
            outcome = Verdict(True, ["forced with --force", *outcome.reasons])
        votes = registry.tags(store, model, number).get(VOTES)
        reasons = [*outcome.reasons, *([f"votes {votes}"] if votes else [])]
        report = _report(model, decision, number, champion, reasons, figures)
        if not dry_run:
            _apply(store, report)
    return _finish(report, dry_run)


def roll_back(params: Params, *, dry_run: bool = False) -> str:
    """Restore the previous champion, and return the last line to print.

    Args:
        params: all of params.yaml.
        dry_run: whether to change nothing.

    Raises:
        ConfigError: there is no champion, or no champion before it.
        TemporaryError: MLflow can't be reached.
    """
    from pipeline.tracking import runs

    model = params.register_.model
    with runs.reachable():
        store = runs.client()
        numbers = champions.versions(store, model)
        champion = registry.champion(store, model)
        if champion is None:
            raise ConfigError(f"models:/{model}: has no champion to roll back; run `image-captioning promote`")
        before = registry.tags(store, model, champion).get(registry.BEFORE)
        if before is None:
            raise ConfigError(f"models:/{model}/{champion}: is the first champion; there is none to go back to")
        if int(before) not in numbers:
            raise ConfigError(
                f"models:/{model}/{before}: the previous champion was deleted; there is none to go back to"
            )
        if not dry_run:
            champions.roll_back(store, model, champion, int(before))
    return f"version {champion} {'would be' if dry_run else 'is'} rolled back: the champion is version {before} again"


def _decision(outcome: Verdict, approval: str, champion: int | None, force: bool) -> str:
    if not force and (
        (outcome.promoted and approval == "always") or (outcome.borderline and approval in ("borderline", "always"))
    ):
        return WAITS
    if not (outcome.promoted or force):
        return "kept"
    return "first" if champion is None else "promoted"


def _apply(store: Any, report: dict[str, Any]) -> None:
    """Record the decision with both versions, then move the alias.

    Raises:
        TemporaryError: the champion changed meanwhile.
    """
    model, challenger, champion = report["model"], report["challenger"], report["champion"]
    with champions.alone():
        now = registry.champion(store, model)
        if now != champion:
            raise TemporaryError(
                f"models:/{model}: the champion became version {now or 'none'} while {challenger} was compared with"
                f" {champion or 'none'}; run again"
            )
        champions.record(store, report)
        if report["decision"] in ("first", "promoted"):
            champions.crown(store, model, challenger)


def _promoted_since(store: Any, model: str, champion: int, since: float) -> dict[str, Any] | None:
    """Return the report of the promotion that made the champion, if it is no older than `since`."""
    tags = registry.tags(store, model, champion)
    decision = tags.get(DECISION)
    # The tag has whole seconds.
    if decision not in ("promoted", "first") or datetime.fromisoformat(tags[AT]).timestamp() + 1 <= since:
        return None
    before = int(tags[registry.BEFORE]) if decision == "promoted" else None
    return _report(model, decision, champion, before, [tags[REASONS]], {})


def _challenger(numbers: Sequence[int], named: int | None, model: str) -> int:
    if named is not None and named not in numbers:
        raise ConfigError(f"--challenger {named}: models:/{model} has the versions {', '.join(map(str, numbers))}")
    return numbers[-1] if named is None else named


def _compare(
    store: Any, params: Params, challenger: int, champion: int | None
) -> tuple[Verdict, dict[str, dict[str, float]]]:
    """Return the verdict, and the figures of each version on the compared pictures."""
    rule = params.promote
    test = fair_share(read_examples(paths.DATASET / "test"), params.evaluate.max_pictures)
    if not test:
        raise ConfigError("params.yaml: build.test: is 0, so there are no test pictures; set it to 0.15")
    numbers = [challenger] if champion is None else [challenger, champion]
    seen = _trained_on(params, numbers, test)
    compared = [i for i in range(len(test)) if i not in seen]
    if not compared:
        raise DataError(f"{paths.DATASET / 'test'}: a version was trained on every test picture; add more pictures")
    fair = _same_decoding(params, numbers)
    versions = [_score(_captions(store, fair, number, test), test, compared) for number in numbers]
    roles = ("challenger", "champion")
    figures = {role: version.figures() for role, version in zip(roles, versions, strict=False)}
    difference = None if champion is None else gain(versions[0].statistics, versions[1].statistics, rule)
    evaluated = comparisons_of_version(store, params.register_.model, challenger, rule.metric)
    if not evaluated:
        print(
            f"promote: version {challenger} has no comparison with naive answers in its run; it is judged without one"
        )
    return verdict(rule, figures["challenger"]["distinct_captions"], len(compared), difference, evaluated), figures


def _same_decoding(params: Params, numbers: Sequence[int]) -> Params:
    """Return params with which all versions can caption: beam search if one has no index of its training captions."""
    decoding, model = params.evaluate.decoding, params.register_.model
    lacking = [number for number in numbers if decoding.compares and not downloads.has_neighbours(model, number)]
    if not lacking:
        return params
    print(f"promote: version {lacking[0]} has no index of its training captions; all versions caption by beam search")
    beam = decoding.model_copy(update={"method": "beam"})
    return params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"decoding": beam})})


def _trained_on(params: Params, numbers: Sequence[int], test: Sequence[Example]) -> set[int]:
    """Return the indices of test pictures that a version was trained on, or on a near-duplicate."""
    pictures, model, seen = fingerprints_of(test), params.register_.model, set()
    for number in numbers:
        listed = downloads.training_pictures(model, number, params.runtime.model_cache_gb)
        if listed is None:
            print(f"promote: version {number} has no list of its training pictures; all test pictures count for it")
        else:
            seen |= read_fingerprints(listed).matches(pictures, params.build.near_duplicate_bits)
    return seen


def _score(captions: Sequence[str], test: Sequence[Example], compared: Sequence[int]) -> _Scored:
    """Score a version on the compared pictures; word rarities come from all test pictures."""
    tokenizer = tokenizer_for(example.captions for example in test)
    references = [[tokenizer.words(caption) for caption in example.captions] for example in test]
    words = [tokenizer.words(caption) for caption in captions]
    return _Scored([words[i] for i in compared], statistics(words, references).part(compared))


def _captions(store: Any, params: Params, number: int, test: Sequence[Example]) -> list[str]:
    """Return the captions of a version for the test pictures, from the cache if they are there."""
    model = params.register_.model
    deciding = [
        registry.tags(store, model, number).get(registry.MODEL_SHA256, f"models:/{model}/{number}"),
        sha256_of(paths.DATASET / "test"),
        [example.sha256 for example in test],
        params.evaluate.generation.model_dump(),
        params.evaluate.decoding.model_dump(),
        params.finetune.max_tokens,
    ]
    kept = paths.SAID / f"{hashlib.sha256(json.dumps(deciding).encode()).hexdigest()[:32]}.json"
    if kept.is_file():
        return list(read_json(kept))
    from pipeline.models.data_set_captions import data_set_captioning  # torch is slow to import

    files = find_captioner(f"models:/{model}/{number}", params)
    reader = PictureReader(paths.DATASET / "test")
    pictures = [reader.read(example.file_name) for example in test]
    with data_set_captioning(params) as captioning:
        captions, _ = captioning.captions(files, pictures, f"promote version {number}")
    with swapped_in(kept) as (place,):
        write_json(place, captions)
    for old in sorted(paths.SAID.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
        remove(old)
    return captions


def _report(
    model: str,
    decision: str,
    challenger: int,
    champion: int | None,
    reasons: list[str],
    figures: dict[str, dict[str, float]],
) -> dict[str, Any]:
    return {
        "decision": decision,
        "model": model,
        "challenger": challenger,
        "champion": champion,
        "reasons": reasons,
        "metrics": figures,
        "test_sha256": sha256_of(paths.DATASET / "test"),
    }


def _finish(report: dict[str, Any], dry_run: bool) -> Done:
    """Write the report, print the figures, and return the last line with the report."""
    if not dry_run:
        with swapped_in(paths.PROMOTE_REPORT) as (place,):
            write_json(place, report)
    for role, values in report["metrics"].items():
        print(f"promote: {role} {report[role]}: " + ", ".join(f"{key} {value:.3f}" for key, value in values.items()))
    challenger, champion = report["challenger"], report["champion"]
    verb = "would be" if dry_run else "is"
    lines = {
        "first": f"version {challenger} {verb} the first champion",
        "promoted": f"version {challenger} {verb} champion in place of version {champion}",
        "kept": f"version {challenger} is not promoted; the champion is "
        + ("none" if champion is None else f"version {champion}"),
        WAITS: f"version {challenger} {'would wait' if dry_run else 'waits'} for approval (`image-captioning promote"
        f" --approve {challenger}`); the champion is " + ("none" if champion is None else f"version {champion}"),
    }
    return Done(f"{lines[report['decision']]}: {'; '.join(report['reasons'])}", report)
