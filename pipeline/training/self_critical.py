"""Self-critical training: captions that score better than the picture's other samples become likelier.

Rennie et al. 2017, "Self-critical Sequence Training for Image Captioning", with the mean of the other samples as the
baseline (Luo 2020, "A Better Variant of Self-Critical Sequence Training"). The loss of a step is

    (1 - c) / T * sum over samples s of A_s * -log p(s)  +  c / U * sum over people's captions t of -log p(t)

where A_s is the reward of s minus the mean reward of the picture's other samples, T and U are the numbers of tokens of
the samples and of people's captions, and c is `self_critical.cross_entropy`.

Samples and people's captions go through the model in one pass, so a picture is encoded and its prefix computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from pipeline.config.sections.finetune import SelfCritical
from pipeline.data.dataset import Example
from pipeline.evaluation.caption_tokenizer import tokenizer_for
from pipeline.evaluation.consensus import Utility
from pipeline.evaluation.metrics.rouge_l import rouge_l
from pipeline.models.base import Checkpoint, Decoding, is_target_of
from pipeline.models.inputs import Batch
from pipeline.models.precision import autocast
from pipeline.training.loader import CaptionedPicture, groups_of
from pipeline.training.processes import Processes

# The reward counts the end of a caption as a word (as in Luo's code). Otherwise captions that break off, like "a man
# with a", lose nothing.
END = "<end>"


class EndedError(Exception):
    """Self-critical training can't go on; says why. The best epoch so far is kept."""


@dataclass(frozen=True)
class Weighted:
    """People's captions and sampled ones in one batch.

    Attributes:
        batch: the captions, people's first.
        weights: of each caption's negative log-probability in the loss, `(captions,)`.
        truths: number of people's captions.
    """

    batch: Batch
    weights: torch.Tensor
    truths: int


@dataclass
class Sampled:
    """A step's part with its samples: `(pictures * samples, length)` tokens and which of them are targets."""

    batch: Batch
    tokens: torch.Tensor
    is_target: torch.Tensor
    rewards: torch.Tensor


class Rewards:
    """Scores sampled captions against all captions of their picture.

    Args:
        examples: the training examples; their captions set how rare an n-gram is.
        metric: `CIDEr-D` (0 to 10) or `ROUGE-L` (times 10, so that it has the same range).
    """

    def __init__(self, examples: Sequence[Example], metric: str) -> None:
        self._references = [example.captions for example in examples]
        self._utility = Utility(self._references, END) if metric == "CIDEr-D" else None
        self._words = tokenizer_for(self._references).words

    def __call__(self, picture: int, captions: Sequence[str], ended: Sequence[bool]) -> list[float]:
        """Return the reward of each caption of a picture; one that has no end mark gets 0."""
        references = self._references[picture]
        if self._utility is not None:
            scores = self._utility.between(captions, references).mean(axis=1).tolist()
        else:
            wanted = [[*self._words(text), END] for text in references]
            scores = [10 * rouge_l([*self._words(text), END], wanted) for text in captions]
        return [score if has_end else 0.0 for score, has_end in zip(scores, ended, strict=True)]


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Return each reward minus the mean of the picture's other rewards, `(pictures, samples)`."""
    samples = rewards.shape[1]
    advantage: torch.Tensor = (rewards - rewards.mean(dim=1, keepdim=True)) * (samples / (samples - 1))
    # Equal rewards must give exactly 0, and a mean of equal numbers may differ from them in its last bit.
    return torch.where((rewards == rewards[:, :1]).all(dim=1, keepdim=True), torch.zeros_like(rewards), advantage)


class Sampler:
    """Draws captions for a step's pictures and weighs them by their advantage.

    Args:
        checkpoint: the model in training.
        examples: the training examples.
        settings: the params.
        processes: the processes that train together; each samples for its own pictures.
        dtype: dtype of matrix products.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        examples: Sequence[Example],
        settings: SelfCritical,
        processes: Processes,
        dtype: torch.dtype,
    ) -> None:
        self._checkpoint, self._settings, self._processes, self._dtype = checkpoint, settings, processes, dtype
        self._rewards = Rewards(examples, settings.reward)
        # From the model's whole distribution: with top-k or nucleus sampling the gradient would not be the reward's.
        self._decoding = Decoding(samples=settings.samples, temperature=1.0, top_p=1.0, top_k=0)

    def weighted(
        self, pictures: Sequence[int], parts: Sequence[Batch], weight: float, tokens: float
    ) -> tuple[list[Weighted], float, float, float]:
        """Return the parts of a step with their samples, and three sums over all processes.

        Args:
            pictures: the indices of this process's pictures, in the order of the parts.
            parts: this process's share of the step.
            weight: 0 if the process has no pictures of its own in this step, else 1.
            tokens: of people's captions, of all processes.

        Returns:
            the parts; the summed reward, the number of samples, and the summed absolute advantage.

        Raises:
            EndedError: the model can't be sampled from, because its logits are not finite.
        """
        sampled: list[Sampled] = []
        failed, sizes = False, [_pictures_in(batch) for batch in parts]
        groups = groups_of([(i, ()) for i in pictures], max(sizes))
        self._checkpoint.model.eval()
        try:
            for group, batch in zip(groups, parts, strict=True):
                sampled.append(self._sample(group, batch))
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            failed = True
        self._checkpoint.model.train()
        if self._processes.any(failed):
            raise EndedError("the model's logits are not finite; lower finetune.self_critical.learning_rate")
        drawn = self._processes.sum(weight * sum(int(part.is_target.sum()) for part in sampled))
        share = self._settings.cross_entropy
        weighted = []
        for part in sampled:
            of_samples = weight * (1 - share) / drawn * advantages(part.rewards).flatten()
            weighted.append(_together(part, weight * share / tokens, of_samples))
        rewards = torch.cat([part.rewards for part in sampled])
        spread = torch.cat([advantages(part.rewards) for part in sampled]).abs().sum()
        reward, count, advantage = (
            self._processes.sum(weight * float(value)) for value in (rewards.sum(), rewards.numel(), spread)
        )
        return weighted, reward, count, advantage

    def longest(self, batch: Batch, length: int) -> Weighted:
        """Return a part of a step whose samples all have `length` tokens, to try its memory; all weights are 0."""
        batch, samples = batch.to(self._processes.device), _pictures_in(batch) * self._settings.samples
        tokens = batch.input_ids.new_full((samples, length), int(batch.input_ids[0, 0]))
        is_target = torch.ones_like(tokens[:, 1:], dtype=torch.bool)
        weights = torch.zeros(samples, device=tokens.device)
        return _together(Sampled(batch, tokens, is_target, rewards=weights), 0.0, weights)

    def _sample(self, group: Sequence[CaptionedPicture], batch: Batch) -> Sampled:
        """Draw captions for the pictures of a part, and score them."""
        model = self._checkpoint.model
        batch = batch.to(self._processes.device)
        features = batch.features
        with torch.no_grad(), autocast(self._processes.device, self._dtype):
            if features is None:
                assert batch.pixel_values is not None
                features = model.encode(batch.pixel_values)
                if model.image_encoder_is_frozen:  # so that the step does not encode them again
                    batch = replace(batch, pixel_values=None, features=features)
            # A copy, because the results of inference mode can't take part in a backward pass.
            tokens = model.generate_captions(None, features, self._decoding).clone()
        end = self._checkpoint.tokenizer.sep_token_id
        is_target = is_target_of(tokens, end)
        ended = (is_target & (tokens[:, 1:] == end)).any(dim=1).tolist()
        texts = [text.strip() for text in self._checkpoint.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        samples = self._settings.samples
        rewards = [
            self._rewards(picture, texts[row : row + samples], ended[row : row + samples])
            for row, (picture, _) in zip(range(0, len(texts), samples), group, strict=True)
        ]
        return Sampled(batch, tokens, is_target, torch.tensor(rewards, device=tokens.device))


def _pictures_in(batch: Batch) -> int:
    pictures = batch.features if batch.pixel_values is None else batch.pixel_values
    assert pictures is not None
    return len(pictures)


def _together(part: Sampled, of_truths: float, of_samples: torch.Tensor) -> Weighted:
    """Return people's captions, each of the same weight, and the samples as one batch."""
    batch, device = part.batch, part.tokens.device
    truths, length = batch.input_ids.shape
    longest = max(length, part.tokens.shape[1])
    mask = torch.cat([torch.ones_like(part.tokens[:, :1]), part.is_target.long()], dim=1)
    of = torch.arange(_pictures_in(batch), device=device).repeat_interleave(len(part.tokens) // _pictures_in(batch))
    rows = replace(
        batch,
        input_ids=torch.cat([_padded(batch.input_ids, longest), _padded(part.tokens * mask, longest)]),
        attention_mask=torch.cat([_padded(batch.attention_mask, longest), _padded(mask, longest)]),
        picture_of=torch.cat([batch.picture_of, of]),
    )
    weights = torch.cat([torch.full((truths,), of_truths, device=device), of_samples])
    return Weighted(rows, weights, truths)


def _padded(tokens: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(tokens, (0, length - tokens.shape[1]))
