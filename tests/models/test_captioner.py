from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForCausalLM

from pipeline.models.captioner import Captioner
from pipeline.models.inputs import normalize, resize_and_crop
from tests.models.git.test_checkpoint import small

PICTURES = [Image.new("RGB", (40, 30), colour) for colour in ("red", "navy")]


def test_several_captions_are_distinct_and_sorted_by_likelihood(tmp_path: Path) -> None:
    """Likelihood is the mean log-probability per token, computed with stock transformers."""
    checkpoint = small()
    checkpoint.save(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for captions, picture in zip(Captioner(checkpoint).several(PICTURES, 5, seed=3), PICTURES, strict=True):
        assert len(captions) == len(set(captions)) == 5
        pixels = normalize(checkpoint.image_processor, resize_and_crop(checkpoint.image_processor, [picture]))
        likelihoods = []
        for caption in captions:
            ids = torch.tensor([checkpoint.tokenizer(caption)["input_ids"]])
            with torch.no_grad():
                logits = stock(input_ids=ids, pixel_values=pixels).logits[0, -ids.shape[1] : -1]
            likelihoods.append(logits.log_softmax(-1).gather(1, ids[0, 1:, None]).mean().item())
        assert likelihoods == sorted(likelihoods, reverse=True)
        assert likelihoods[0] > likelihoods[-1]


def test_sampled_captions_depend_on_the_seed() -> None:
    captioner = Captioner(small())
    assert captioner.several(PICTURES, 3, seed=3) == captioner.several(PICTURES, 3, seed=3)
    assert captioner.several(PICTURES, 3, seed=3) != captioner.several(PICTURES, 3, seed=4)
