from __future__ import annotations

from pipeline.evaluation.content_words import are_english, content_words
from pipeline.evaluation.diversity import wording
from pipeline.evaluation.ptb.tokens import ptb_tokenize
from pipeline.synthetic.scenes import COLOURS, PLACES


def test_content_words_are_those_that_say_what_is_there() -> None:
    words = ptb_tokenize("We can't believe it's 2 big dogs running in front of the fire station! \N{CAMERA} #nofilter")
    assert content_words(words) == {"believe", "big", "dogs", "running", "front", "fire", "station", "#nofilter"}


def test_nothing_that_the_sample_shows_is_a_function_word() -> None:
    things = {*COLOURS, *(thing for place in PLACES.values() for thing in place.things)}
    assert content_words([*things]) == things


def test_english_is_told_from_its_neighbours() -> None:
    assert are_english([ptb_tokenize("A dog runs over the grass by the lake")])
    assert not are_english([ptb_tokenize("Een hond rent over het gras in de zon")])
    assert not are_english([ptb_tokenize("Ein Hund l\u00e4uft \u00fcber die Wiese am See")])
    assert not are_english([[]])


def test_recall_of_content_words_takes_the_best_reference_and_only_english() -> None:
    figures = wording(["a dog in the grass"], [["the dog is on the lawn", "an animal"]])
    assert figures["content_recall"] == 1 / 2
    assert wording(["ein Hund"], [["ein Hund im Gras"]])["content_recall"] is None


def test_captions_that_break_off_or_repeat_themselves_are_counted() -> None:
    training = ["a dog with a ball", "a ball for a dog"] * 60
    figures = wording(["a dog with", "a dog a dog a dog", "a ball"], [["a"]] * 3, training=training)
    assert figures["loops"] == 1 / 3
    assert figures["unfinished"] == 1 / 3
