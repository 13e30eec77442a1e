from __future__ import annotations

import random

import pytest

from pipeline.config import params
from pipeline.evaluation.named_words import NamedWords
from pipeline.synthetic.scenes import random_scene
from pipeline.synthetic.words import instagram, plain

GROUPS = {
    "colour": ["red", "green"],
    "place": [["on the beach", "by the sea"], "out in the green"],
    "thing": ["赤い花"],
}


@pytest.mark.parametrize(
    ("caption", "colour", "place"),
    [
        ("A RED, green boat", {"red", "green"}, set()),
        ("Fred is reddish", set(), set()),
        ("#red!", {"red"}, set()),
        ("out  in\nthe green", set(), {"out in the green"}),
        ("green, out in the green", {"green"}, {"out in the green"}),
        ("by the sea", set(), {"on the beach"}),
        ("", set(), set()),
    ],
)
def test_words_are_found_whole_in_any_case_and_long_phrases_first(
    caption: str, colour: set[str], place: set[str]
) -> None:
    assert NamedWords(GROUPS).of(caption) == {"colour": colour, "place": place, "thing": set()}


def test_words_of_scripts_without_spaces_are_found_within_text() -> None:
    assert NamedWords(GROUPS).of("庭に赤い花が咲く")["thing"] == {"赤い花"}


def test_precision_counts_what_any_reference_names_and_recall_takes_the_best_reference() -> None:
    captions = ["a red boat", "a green boat", "a boat", "red and green"]
    references = [["red", "green"], ["red"], ["red and green"], ["no colour", "red"]]
    assert NamedWords({"colour": ["red", "green"]}).figures(captions, references) == {
        "colour": {"precision": (1 + 0 + 0.5) / 3, "recall": (1 + 0 + 0 + 1) / 4}
    }


def test_what_nobody_names_has_no_figure() -> None:
    assert NamedWords({"colour": ["red"]}).figures(["a"], [["b"]]) == {"colour": {"precision": None, "recall": None}}
    assert NamedWords({}).figures(["a"], [["b"]]) == {}


def test_the_groups_as_shipped_read_the_sample_without_a_mistake() -> None:
    """What the plain caption of a scene names, its captions in the style of the sample name too, and nothing else."""
    named = NamedWords(params.load().evaluate.named_words)
    rng = random.Random(5)
    for _ in range(300):
        scene = random_scene(rng, two=0.5)
        truth = named.of(plain(scene))
        for caption in instagram(scene, rng):
            said = named.of(caption)
            assert said["colour"] == truth["colour"]
            assert said["thing"] == truth["thing"]
            assert said["size"] in (truth["size"], set())
            assert said["place"] in (truth["place"], set())
