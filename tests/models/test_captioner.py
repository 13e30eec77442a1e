from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM

from pipeline.config.errors import ConfigError
from pipeline.config.sections.evaluate import DecodingSettings
from pipeline.models import factory
from pipeline.models.base import CaptionModel, Checkpoint
from pipeline.models.captioner import PLAIN, Captioner
from pipeline.models.git.modeling import GitForCausalLM
from pipeline.models.inputs import normalize, resize_and_crop
from pipeline.models.neighbours import Neighbours
from tests.conftest import ROOT
from tests.models.git.test_checkpoint import small

PICTURES = [Image.new("RGB", (40, 30), colour) for colour in ("red", "navy")]


def likelihoods(stock: Any, checkpoint: Checkpoint, picture: Image.Image, captions: list[str]) -> list[float]:
    """Return the mean log-probability per token of captions, end mark included, computed with stock transformers."""
    pixels = normalize(checkpoint.image_processor, resize_and_crop(checkpoint.image_processor, [picture]))
    found = []
    for caption in captions:
        ids = torch.tensor([checkpoint.tokenizer(caption)["input_ids"]])
        with torch.no_grad():
            logits = stock(input_ids=ids, pixel_values=pixels).logits[0, -ids.shape[1] : -1]
        found.append(logits.log_softmax(-1).gather(1, ids[0, 1:, None]).mean().item())
    return found


def test_several_captions_are_distinct_and_sorted_by_likelihood(tmp_path: Path) -> None:
    checkpoint = small()
    checkpoint.save(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for captions, picture in zip(Captioner(checkpoint).several(PICTURES, 5, seed=3), PICTURES, strict=True):
        assert len(captions) == len(set(captions)) == 5
        found = likelihoods(stock, checkpoint, picture, captions)
        assert found == sorted(found, reverse=True)
        assert found[0] > found[-1]


def test_sampled_captions_depend_on_the_seed() -> None:
    captioner = Captioner(small())
    assert captioner.several(PICTURES, 3, seed=3) == captioner.several(PICTURES, 3, seed=3)
    assert captioner.several(PICTURES, 3, seed=3) != captioner.several(PICTURES, 3, seed=4)


def test_diverse_captions_share_fewer_words_than_the_likeliest() -> None:
    captioner = Captioner(factory.load(ROOT / "models" / "git-demo"))
    captioner.generate_by(PLAIN.model_copy(update={"temperature": 2.0, "top_p": 1.0}))
    prepared = [captioner.prepare(picture) for picture in PICTURES]

    def overlap(captions: list[str]) -> float:
        words = [set(caption.split()) for caption in captions]
        pairs = [(a, b) for i, a in enumerate(words) for b in words[:i]]
        return sum(len(a & b) / len(a | b) for a, b in pairs) / len(pairs)

    sampled = {"count": 5, "beams": 1, "sampling": True}
    likely, diverse = (captioner.scored(prepared, [0, 0], **sampled, diverse=way) for way in (False, True))
    for one, other, picture in zip(likely, diverse, PICTURES, strict=True):
        texts = [caption.text for caption in other]
        assert len(set(texts)) == 5
        assert overlap(texts) < overlap([caption.text for caption in one])
        assert texts == captioner.several([picture], 5, diverse=True)[0]


def test_captions_start_with_the_prompt_and_a_prompt_that_is_too_long_is_refused() -> None:
    captioner = Captioner(factory.load(ROOT / "models" / "git-demo"))
    captioner.generate_by(PLAIN.model_copy(update={"prompt": "a small green"}))
    prepared = [captioner.prepare(picture) for picture in PICTURES]
    found = captioner.scored(prepared, [0, 0], count=3, beams=3, sampling=False)
    texts = [*captioner.caption(PICTURES, beams=2), *(caption.text for captions in found for caption in captions)]
    assert all(text.startswith("a small green ") for text in texts)
    with pytest.raises(ConfigError, match=r"generation\.prompt: has 500 tokens, but this model takes \d+; shorten it"):
        captioner.generate_by(PLAIN.model_copy(update={"prompt": "green " * 500}))


@pytest.mark.parametrize(
    "options",
    [
        {"count": 1, "beams": 1, "sampling": False},
        {"count": 1, "beams": 3, "sampling": False},
        {"count": 4, "beams": 3, "sampling": False},
        {"count": 4, "beams": 1, "sampling": True},
    ],
)
def test_scores_are_the_mean_log_probability_per_token(tmp_path: Path, options: dict[str, Any]) -> None:
    """Of the tokens as they were generated, end mark included."""
    checkpoint = factory.load(ROOT / "models" / "git-demo")
    captioner = Captioner(checkpoint)
    stock = AutoModelForCausalLM.from_pretrained(ROOT / "models" / "git-demo").eval()
    found = captioner.scored([captioner.prepare(picture) for picture in PICTURES], [3, 3], **options)
    for captions, picture in zip(found, PICTURES, strict=True):
        texts = [caption.text for caption in captions]
        assert 1 <= len(texts) == len(set(texts)) <= options["count"]
        expected = likelihoods(stock, checkpoint, picture, texts)
        assert [caption.score for caption in captions] == pytest.approx(expected, abs=1e-4)
    if not options["sampling"]:
        best = captioner.caption(PICTURES, beams=options["beams"])
        assert [captions[0].text for captions in found] == best
    else:
        assert [[caption.text for caption in captions] for captions in found] == [
            captioner.several([picture], options["count"], seed=3)[0] for picture in PICTURES
        ]


def test_candidates_have_their_log_probabilities_and_the_likeliest_can_be_made_to_win(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.models.git.modeling._LOGITS", 7)  # so that captions are cut between parts
    checkpoint = factory.load(ROOT / "models" / "git-demo")
    captioner = Captioner(checkpoint)
    stock = AutoModelForCausalLM.from_pretrained(ROOT / "models" / "git-demo").eval()
    written = [["a big yellow kite"], ["two kites in the sky"], ["a dog on the beach"]]
    index = Neighbours(np.eye(3, 128, dtype=np.float16), written, ["0", "1", "2"], {})

    def chosen(likelihood: float) -> list[str]:
        way = DecodingSettings(method="consensus", samples=6, temperature=1.0, neighbours=3, likelihood=0, seed=0)
        captioner.choose_by(way.model_copy(update={"likelihood": likelihood}), index)
        return captioner.caption(PICTURES, beams=3)

    by_agreement, by_likelihood = chosen(0.0), chosen(1e6)
    likeliest = []
    found = captioner.candidates([captioner.prepare(picture) for picture in PICTURES], beams=3)
    for candidates, picture in zip(found, PICTURES, strict=True):
        assert len(candidates.texts) == 3 + 6
        expected = likelihoods(stock, checkpoint, picture, candidates.texts)
        assert candidates.log_probabilities == pytest.approx(expected, abs=1e-4)
        likeliest.append(candidates.texts[candidates.log_probabilities.argmax()])
    assert by_agreement != by_likelihood == likeliest


def test_an_architecture_without_scores_of_its_own_is_scored_by_its_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = Captioner(factory.load(ROOT / "models" / "git-demo"))
    prepared = [captioner.prepare(picture) for picture in PICTURES]
    own = captioner.scored(prepared, [0, 0], count=3, beams=2, sampling=False)
    monkeypatch.setattr(GitForCausalLM, "generate_with_scores", CaptionModel.generate_with_scores)
    other = captioner.scored(prepared, [0, 0], count=3, beams=2, sampling=False)
    assert [[c.text for c in captions] for captions in own] == [[c.text for c in captions] for captions in other]
    for one, two in zip(own, other, strict=True):
        assert [c.score for c in one] == pytest.approx([c.score for c in two], abs=1e-4)
