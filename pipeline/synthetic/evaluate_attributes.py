"""Measure the attribute accuracy of a checkpoint: how often it names the colour and kind of every object in a scene.

    python -m pipeline.synthetic.evaluate_attributes models/finetune

The scenes are new. In *unseen combinations* every object has a colour in which neither `git-demo`'s training nor the
sample ever shows it (`pipeline.synthetic.scenes.unseen_pairs`), so memorised combinations do not help.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from pipeline.models.captioner import Captioner
from pipeline.synthetic.scenes import Scene, draw, random_scene, unseen_pairs
from pipeline.synthetic.words import names_all, plain

SCENES = 600  # of each set
SEED = 4_000_000_000  # far from every other seed in this repository
_BATCH = 50

Accuracy = dict[str, dict[str, float]]  # set of scenes -> measure -> value


def evaluate_attributes(captioner: Captioner, scenes: int = SCENES, seed: int = SEED, beams: int = 1) -> Accuracy:
    """Caption new scenes and measure the accuracy of the captions.

    Args:
        captioner: the model.
        scenes: number of scenes in each set.
        seed: random seed of the scenes.
        beams: beams of the search; 1 is greedy search.

    Returns:
        for `seen_combinations` and `unseen_combinations` the fractions, from 0 to 1, of captions that name the colour
        and kind of every object exactly (`named`; `named_of_one` and `named_of_two` for scenes with one and two
        objects), and of captions that equal the scene's plain caption (`plain`).
    """
    seen_rng, unseen_rng = random.Random(seed), random.Random(seed + 1)
    seen = [random_scene(seen_rng, avoid=unseen_pairs()) for _ in range(scenes)]
    unseen = [random_scene(unseen_rng, only=unseen_pairs()) for _ in range(scenes)]
    return {
        "seen_combinations": _measure(captioner, seen, seed, beams),
        "unseen_combinations": _measure(captioner, unseen, seed + 1, beams),
    }


def _measure(captioner: Captioner, scenes: list[Scene], seed: int, beams: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    captioned: list[tuple[Scene, str]] = []
    for start in range(0, len(scenes), _BATCH):
        batch = scenes[start : start + _BATCH]
        captions = captioner.caption([draw(scene, rng) for scene in batch], beams=beams)
        captioned += zip(batch, captions, strict=True)

    def fraction(correct: Callable[[str, Scene], bool], pairs: Iterable[tuple[Scene, str]]) -> float:
        answers = [correct(caption, scene) for scene, caption in pairs]
        return round(sum(answers) / len(answers), 4)

    return {
        "scenes": len(scenes),
        "named": fraction(names_all, captioned),
        "named_of_one": fraction(names_all, (pair for pair in captioned if len(pair[0].things) == 1)),
        "named_of_two": fraction(names_all, (pair for pair in captioned if len(pair[0].things) == 2)),
        "plain": fraction(lambda caption, scene: caption == plain(scene), captioned),
    }


def main() -> None:
    """Command line: measure a checkpoint."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.synthetic.evaluate_attributes", description=__doc__.split("\n")[0]
    )
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint")
    parser.add_argument("--scenes", type=int, default=SCENES, help="scenes in each set (default: %(default)s)")
    parser.add_argument("--beams", type=int, default=1, help="beams of the search (default: %(default)s)")
    args = parser.parse_args()
    accuracy = evaluate_attributes(Captioner.from_folder(args.checkpoint), args.scenes, beams=args.beams)
    print(json.dumps(accuracy, indent=2))


if __name__ == "__main__":
    main()
