"""What a checkpoint sees: the share of drawn scenes that it names rightly, also those with unseen combinations.

    python -m pipeline.synthetic.evaluate_sight models/finetune

The scenes are new ones. In *unseen combinations* every thing has a colour in which neither `git-demo` nor the
sample ever shows it (`pipeline.synthetic.scenes.unseen_pairs`), so who names them right has not learned them by heart.
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

SCENES = 600  # of each kind
SEED = 4_000_000_000  # of them; no other seed in this repository is as large
_AT_A_TIME = 50

Figures = dict[str, dict[str, float]]


def sight(captioner: Captioner, scenes: int = SCENES, seed: int = SEED, beams: int = 1) -> Figures:
    """Caption new scenes and count.

    Returns:
        for `seen_combinations` and `unseen_combinations` the shares, from 0 to 1, of captions that name the colour
        and the kind of every thing in exact words (`named`; `named_of_one` and `named_of_two` among the scenes with so
        many things), and that are the scene's plain caption word for word (`plain`).
    """
    first, second = random.Random(seed), random.Random(seed + 1)
    seen = [random_scene(first, avoid=unseen_pairs()) for _ in range(scenes)]
    unseen = [random_scene(second, only=unseen_pairs()) for _ in range(scenes)]
    return {
        "seen_combinations": _count(captioner, seen, seed, beams),
        "unseen_combinations": _count(captioner, unseen, seed + 1, beams),
    }


def _count(captioner: Captioner, scenes: list[Scene], seed: int, beams: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    captioned: list[tuple[Scene, str]] = []
    for first in range(0, len(scenes), _AT_A_TIME):
        some = scenes[first : first + _AT_A_TIME]
        captioned += zip(some, captioner.caption([draw(scene, rng) for scene in some], beams=beams), strict=True)

    def share(right: Callable[[str, Scene], bool], of: Iterable[tuple[Scene, str]]) -> float:
        answers = [right(caption, scene) for scene, caption in of]
        return round(sum(answers) / len(answers), 4)

    return {
        "scenes": len(scenes),
        "named": share(names_all, captioned),
        "named_of_one": share(names_all, (pair for pair in captioned if len(pair[0].things) == 1)),
        "named_of_two": share(names_all, (pair for pair in captioned if len(pair[0].things) == 2)),
        "plain": share(lambda caption, scene: caption == plain(scene), captioned),
    }


def main() -> None:
    """Command line: count for a checkpoint's folder."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.synthetic.evaluate_sight", description=__doc__.split("\n")[0]
    )
    parser.add_argument("checkpoint", type=Path, help="a folder with a GIT checkpoint")
    parser.add_argument("--scenes", type=int, default=SCENES, help="of each kind (default: %(default)s)")
    parser.add_argument("--beams", type=int, default=1, help="of the beam search (default: %(default)s)")
    args = parser.parse_args()
    print(json.dumps(sight(Captioner.from_folder(args.checkpoint), args.scenes, beams=args.beams), indent=2))


if __name__ == "__main__":
    main()
