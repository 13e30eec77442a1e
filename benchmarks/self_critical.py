"""What a self-critical step costs, beside the same step with stock transformers, and beside its `generate` alone.

The step samples captions, scores them, computes the gradient over samples and people's captions, and takes the
optimizer's step. Ours computes a picture's prefix once for all its captions; stock encodes the picture for each. Random
weights hardly ever end a caption, so all have the same length.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

import torch
import transformers
from accelerate import Accelerator
from transformers import GitConfig, GitVisionConfig

from benchmarks import Figure, ratio
from benchmarks._workspace import ROOT
from pipeline.config.sections.finetune import SelfCritical
from pipeline.models import factory
from pipeline.models.base import Checkpoint
from pipeline.models.git.modeling import GitForCausalLM
from pipeline.models.inputs import caption_tokens, collate
from pipeline.models.precision import loss_scaler
from pipeline.training.descent import descend
from pipeline.training.optimization import CaptionLoss, adamw
from pipeline.training.processes import Processes
from pipeline.training.self_critical import Rewards, Sampler, advantages

DEMO = ROOT / "models/git-demo"
SETTINGS = SelfCritical(
    epochs=6, samples=5, learning_rate="auto", reward="CIDEr-D", cross_entropy=0.1, least_distinct=0.9
)
LENGTH = 20  # tokens of a caption
CAPTIONS = ["a small red boat left of a big blue lighthouse on the beach"] * 5  # people's, of each picture
GOAL = 3.0


def step(checkpoint: Checkpoint, pictures: int) -> Callable[[], object]:
    """A whole self-critical step of all weights, the image encoder's too, with the optimizer's."""
    processes = Processes(Accelerator(cpu=True))
    examples = [Namespace(captions=[f"{text} {k}" for text in CAPTIONS]) for k in range(pictures)]
    sampler = Sampler(checkpoint, examples, SETTINGS, processes, torch.float32)  # type: ignore[arg-type]
    side = checkpoint.image_size
    pixels = torch.randint(0, 255, (pictures, 3, side, side), dtype=torch.uint8)
    batch = collate(checkpoint, pixels, caption_tokens(checkpoint, [e.captions for e in examples], LENGTH))
    tokens = float(batch.attention_mask[:, 1:].sum())
    optimizer, loss = adamw(checkpoint.model, 1e-6, 0.01), CaptionLoss(checkpoint.model)
    scaler = loss_scaler(processes.device, torch.float32)

    def work() -> None:
        parts, _, _, _ = sampler.weighted(range(pictures), [batch], 1.0, tokens)
        assert len(parts[0].weights) - parts[0].truths == pictures * SETTINGS.samples
        descend(loss, parts, 1.0, tokens, processes, optimizer, scaler, 1.0)
        optimizer.step()

    return work


def sampling(model: transformers.GitForCausalLM, pictures: int) -> Callable[[], torch.Tensor]:
    """The library's sampling of as many captions, without the step that learns from them."""
    side = model.config.vision_config.image_size
    pixels = torch.randn(pictures, 3, side, side)
    how = {"do_sample": True, "top_k": 0, "num_return_sequences": SETTINGS.samples, "max_length": LENGTH}

    def work() -> torch.Tensor:
        model.eval()
        tokens: torch.Tensor = model.generate(pixel_values=pixels, **how)
        return tokens

    return work


def stock_step(model: transformers.GitForCausalLM, checkpoint: Checkpoint, pictures: int) -> Callable[[], object]:
    """The same step with the library: the same rewards, but a copy of the picture for each caption."""
    side, count = checkpoint.image_size, SETTINGS.samples
    pixels, sample = torch.randn(pictures, 3, side, side), sampling(model, pictures)
    examples = [Namespace(captions=[f"{text} {k}" for text in CAPTIONS]) for k in range(pictures)]
    rewards = Rewards(examples, SETTINGS.reward)  # type: ignore[arg-type]
    own = caption_tokens(checkpoint, [e.captions for e in examples], LENGTH)
    people = collate(checkpoint, torch.zeros(pictures, 3, side, side, dtype=torch.uint8), own)
    optimizer = adamw(model, 1e-6, 0.01)
    of = torch.cat([people.picture_of, torch.arange(pictures).repeat_interleave(count)])
    share, patches = SETTINGS.cross_entropy, (side // model.config.vision_config.patch_size) ** 2 + 1

    def work() -> None:
        tokens = sample()
        texts = checkpoint.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        ended = (tokens[:, 1:] == checkpoint.tokenizer.sep_token_id).any(dim=1).tolist()
        parts = [slice(k * count, (k + 1) * count) for k in range(pictures)]
        scores = torch.tensor([rewards(k, texts[part], ended[part]) for k, part in enumerate(parts)])
        ids = torch.nn.utils.rnn.pad_sequence([*people.input_ids, *tokens], batch_first=True)
        truths, (rows, length) = len(people.input_ids), ids.shape
        mask = torch.ones_like(ids)
        mask[:truths] = torch.nn.functional.pad(people.attention_mask, (0, length - people.attention_mask.shape[1]))
        weights = torch.empty(rows)
        weights[:truths] = share / people.attention_mask[:, 1:].sum()
        weights[truths:] = (1 - share) / mask[truths:, 1:].sum() * advantages(scores).flatten()
        model.train()
        optimizer.zero_grad()
        logits = model(input_ids=ids, attention_mask=mask, pixel_values=pixels[of]).logits[:, patches:-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        ((losses * mask[:, 1:]).sum(dim=1) * weights).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return work


def figures() -> list[Figure]:
    """A step for a model of git-demo's size, and for one as wide as GIT-base with a third of its layers."""
    demo = factory.load(DEMO)
    small = GitConfig.from_pretrained(DEMO)
    marks = {f"{mark}_token_id": getattr(small, f"{mark}_token_id") for mark in ("bos", "eos", "pad")}
    wide = GitConfig(vision_config=GitVisionConfig(num_hidden_layers=4).to_dict(), num_hidden_layers=2, **marks)
    found = []
    for name, config, pictures, runs in (
        ("git-demo's size, 8 pictures", small, 8, 7),
        ("GIT-base's width, 4 and 2 layers, 4 pictures", wide, 4, 3),
    ):
        torch.manual_seed(0)
        mine, theirs = GitForCausalLM(config), transformers.GitForCausalLM(config)
        theirs.load_state_dict(mine.state_dict())
        mine.set_caption_length(LENGTH)
        checkpoint = Checkpoint(mine, demo.image_processor, demo.tokenizer)
        ours = ("ours", step(checkpoint, pictures))
        text = f"a self-critical step, {SETTINGS.samples} samples a picture, {name}"
        stock = ("stock, the same step", stock_step(theirs, checkpoint, pictures))
        found.append(ratio(text, stock, ours, GOAL, runs, better="higher"))
        stock = ("stock generate, sampling only", sampling(theirs, pictures))
        found.append(ratio(f"{text}, beside sampling alone", stock, ours, GOAL, runs, better="higher"))
    return found
