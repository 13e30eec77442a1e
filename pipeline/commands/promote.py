"""Promote: the newest registered version against the champion, on the test pictures of today.

The alias `champion` in MLflow's registry names the model in use. Both versions caption the same test pictures, but for
those that either was trained on, or on ones nearly the same; the rule in params.yaml (`promote`) decides, and the alias
moves last, when all else is noted. It is no stage of dvc.yaml, for the registry is not DVC's to see.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.config import paths
from pipeline.config.errors import ConfigError, DataError, TemporaryError
from pipeline.config.params import Params
from pipeline.data.dataset import Example, PictureReader, fair_share, read_examples
from pipeline.data.fingerprints import printed, read_printed
from pipeline.evaluation.diversity import distinct_captions
from pipeline.evaluation.gate import Verdict, gain, verdict
from pipeline.evaluation.metrics import Statistics, statistics
from pipeline.evaluation.ptb.tokens import tokenize
from pipeline.runtime import entrypoint
from pipeline.runtime.atomic_files import read_json, remove, sha256_of, swapped_in, write_json
from pipeline.tracking import registry

_KEPT = 16  # files of captions, the newest
_DECISION, _REASONS, _AT = "gate.decision", "gate.reasons", "gate.at"  # tags; the time to the second


@dataclass(frozen=True)
class _Version:
    """What a version says of the pictures that are compared, and how that is scored."""

    words: list[list[str]]
    counted: Statistics

    def figures(self) -> dict[str, float]:
        return {**self.counted.scores(), "distinct_captions": distinct_captions(self.words)}


def run(params: Params, args: argparse.Namespace) -> str:
    """Decide, and return the last line to print."""
    from pipeline.tracking import runs

    model = params.register_.model
    with runs.reachable():
        store = runs.client()
        numbers = registry.versions(store, model)
        if not numbers:
            raise ConfigError(f"models:/{model}: has no version in MLflow; run `dvc repro` first")
        champion = registry.champion(store, model)
        if args.rollback:
            return _roll_back(store, model, numbers, champion, args.dry_run)
        if not (paths.DATASET / "test").is_dir():
            raise DataError(f"{paths.DATASET / 'test'}: not found; run `dvc repro build`, which makes it")
        challenger = _challenger(numbers, args.challenger, model)
        if challenger == champion:
            report = _promoted_since(store, model, champion, args.since)
            return _tell(args, report or _report(model, "kept", champion, champion, ["it is the champion already"], {}))
        spared = args.challenger is None or args.unless_taken_back
        if spared and registry.ROLLED_BACK in registry.tags(store, model, challenger):
            reasons = [f"it was taken back; `--challenger {challenger}` compares it all the same"]
            return _tell(args, _report(model, "kept", challenger, champion, reasons, {}))
        found, figures = _compare(store, params, challenger, champion)
        decision = "kept" if not found.promoted else "first" if champion is None else "promoted"
        report = _report(model, decision, challenger, champion, found.reasons, figures)
        if not args.dry_run:
            now = registry.champion(store, model)
            if now != champion:
                raise TemporaryError(
                    f"models:/{model}: the champion became version {now or 'none'} while {challenger} was compared with"
                    f" {champion or 'none'}; run again"
                )
            _note(store, report)
            if found.promoted:
                registry.make_champion(store, model, challenger)
                registry.forget(store, model, challenger, registry.ROLLED_BACK)
    return _tell(args, report)


def _promoted_since(store: Any, model: str, champion: int, since: float) -> dict[str, Any] | None:
    """What was decided when the champion became it, if that is no older: the run that decided did not come to tell."""
    noted = registry.tags(store, model, champion)
    decision = noted.get(_DECISION)
    # The tag has whole seconds.
    if decision not in ("promoted", "first") or datetime.fromisoformat(noted[_AT]).timestamp() + 1 <= since:
        return None
    before = int(noted[registry.BEFORE]) if decision == "promoted" else None
    return _report(model, decision, champion, before, [noted[_REASONS]], {})


def _challenger(numbers: Sequence[int], named: int | None, model: str) -> int:
    if named is not None and named not in numbers:
        raise ConfigError(f"--challenger {named}: models:/{model} has the versions {', '.join(map(str, numbers))}")
    return numbers[-1] if named is None else named


def _compare(
    store: Any, params: Params, challenger: int, champion: int | None
) -> tuple[Verdict, dict[str, dict[str, float]]]:
    """The verdict, and the figures of each on the pictures that both were compared on."""
    rule = params.promote
    test = fair_share(read_examples(paths.DATASET / "test"), params.evaluate.max_pictures)
    if not test:
        raise ConfigError("params.yaml: build.test: is 0, so there is nothing to compare on; set it to 0.15")
    numbers = [challenger] if champion is None else [challenger, champion]
    seen = _trained_on(params, numbers, test)
    compared = [i for i in range(len(test)) if i not in seen]
    if not compared:
        raise DataError(f"{paths.DATASET / 'test'}: every picture, or one nearly the same, was trained on; bring more")
    versions = [_version(_captions(store, params, number, test), test, compared) for number in numbers]
    roles = ("challenger", "champion")
    figures = {role: version.figures() for role, version in zip(roles, versions, strict=False)}
    found = None if champion is None else gain(versions[0].counted, versions[1].counted, rule)
    return verdict(rule, figures["challenger"]["distinct_captions"], len(compared), found), figures


def _trained_on(params: Params, numbers: Sequence[int], test: Sequence[Example]) -> set[int]:
    """The test pictures that one of the versions was trained on, or on one nearly the same."""
    pictures, model, out = printed(test), params.register_.model, set()
    for number in numbers:
        listed = registry.training_pictures(model, number)
        if listed is None:
            print(f"promote: version {number} does not tell what it was trained on; no picture is left out for it")
        else:
            out |= read_printed(listed).near(pictures, params.build.near_duplicate_bits)
    return out


def _version(captions: Sequence[str], test: Sequence[Example], compared: Sequence[int]) -> _Version:
    """A version on the pictures that are compared; how rare a word is, is known from all test pictures."""
    references = [[tokenize(caption) for caption in example.captions] for example in test]
    words = [tokenize(caption) for caption in captions]
    return _Version([words[i] for i in compared], statistics(words, references).part(compared))


def _captions(store: Any, params: Params, number: int, test: Sequence[Example]) -> list[str]:
    """What a version says of the test pictures; what it said of the same pictures before is kept."""
    model = params.register_.model
    deciding = [
        registry.tags(store, model, number).get(registry.MODEL_SHA256, f"models:/{model}/{number}"),
        sha256_of(paths.DATASET / "test"),
        [example.sha256 for example in test],
        params.evaluate.beams,
        params.finetune.max_tokens,
    ]
    kept = paths.SAID / f"{hashlib.sha256(json.dumps(deciding).encode()).hexdigest()[:32]}.json"
    if kept.is_file():
        return list(read_json(kept))
    from pipeline.models.captioner import Captioner

    captioner = Captioner.from_folder(registry.checkpoint_of(f"models:/{model}/{number}"))
    reader = PictureReader(paths.DATASET / "test")
    pictures = [reader.read(example.file_name) for example in test]
    captions = captioner.caption_all(
        pictures,
        beams=params.evaluate.beams,
        max_tokens=params.finetune.max_tokens,
        batch_size=params.runtime.caption_batch_size,
        name=f"promote version {number}",
    )
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


def _note(store: Any, report: dict[str, Any]) -> None:
    """Note the decision and its reasons with both versions."""
    model, challenger, champion = report["model"], report["challenger"], report["champion"]
    why = {
        _DECISION: report["decision"],
        _REASONS: "; ".join(report["reasons"]),
        "gate.test_sha256": report["test_sha256"],
        _AT: datetime.now(UTC).isoformat(timespec="seconds"),
    }
    against = {} if champion is None else {"gate.against": str(champion)}
    if report["decision"] == "promoted":
        against[registry.BEFORE] = str(champion)
    registry.note(store, model, challenger, {**why, **against})
    if champion is not None:
        outcome = "replaced" if report["decision"] == "promoted" else "stays"
        registry.note(store, model, champion, {**why, _DECISION: outcome, "gate.against": str(challenger)})


def _roll_back(store: Any, model: str, numbers: Sequence[int], champion: int | None, dry_run: bool) -> str:
    """Make the version champion again that was it before."""
    if champion is None:
        raise ConfigError(f"models:/{model}: has no champion, so there is nothing to take back")
    before = registry.tags(store, model, champion).get(registry.BEFORE)
    if before is None:
        raise ConfigError(f"models:/{model}/{champion}: followed no other champion, so there is none to go back to")
    if int(before) not in numbers:
        raise ConfigError(f"models:/{model}/{before}: was champion before, and is deleted; there is none to go back to")
    if not dry_run:
        registry.note(store, model, champion, {registry.ROLLED_BACK: datetime.now(UTC).isoformat(timespec="seconds")})
        registry.make_champion(store, model, int(before))
    return f"{'would take' if dry_run else 'took'} version {champion} back: the champion is version {before} again"


def _tell(args: argparse.Namespace, report: dict[str, Any]) -> str:
    if not args.dry_run:
        with swapped_in(paths.PROMOTE_REPORT) as (place,):
            write_json(place, report)
    for role, values in report["metrics"].items():
        print(f"promote: {role} {report[role]}: " + ", ".join(f"{key} {value:.3f}" for key, value in values.items()))
    challenger, champion = report["challenger"], report["champion"]
    would = "would be" if args.dry_run else "is"
    words = {
        "first": f"version {challenger} {would} the first champion",
        "promoted": f"version {challenger} {would} champion in place of version {champion}",
        "kept": f"version {challenger} is not promoted; the champion is "
        + ("none" if champion is None else f"version {champion}"),
    }
    return f"{words[report['decision']]}: {'; '.join(report['reasons'])}"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--challenger", type=int, metavar="N", help="the version (default: the newest)")
    parser.add_argument("--unless-taken-back", action="store_true", help="not one that a roll-back took back")
    parser.add_argument(
        "--since",
        type=float,
        default=math.inf,
        metavar="SECONDS",
        help="tell of a promotion since then (in seconds since 1970) as if it were decided now",
    )
    parser.add_argument("--dry-run", action="store_true", help="tell what would be decided, and change nothing")
    parser.add_argument("--rollback", action="store_true", help="make the version champion that was it before")


if __name__ == "__main__":
    entrypoint.main("promote", run, _arguments, lock=lambda args: "promote")
