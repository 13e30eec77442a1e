"""The checkpoints to measure with: `git-demo`, and a GIT of git-base's size with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, CLIPImageProcessorPil, GitConfig

from benchmarks._workspace import ROOT
from pipeline.models.git.checkpoint import GitCheckpoint
from pipeline.models.git.modeling import GitForCausalLM

GIT_DEMO = ROOT / "models" / "git-demo"
_WORDS = 20  # tokens of every caption of random weights; those of git-base have about as many


def save_git_base(folder: Path) -> Path:
    """Write a checkpoint with all of git-base's sizes and random weights; return `folder`.

    Its tokenizer is git-demo's, filled up to git-base's 30,522 tokens with names that no text has. Random weights
    hardly ever say the end token, so every caption has its full length.
    """
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(GIT_DEMO)
    config = GitConfig(
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.add_tokens([f"unused{number}" for number in range(len(tokenizer), config.vocab_size)])
    side = config.vision_config.image_size
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    model = GitForCausalLM(config)
    model.set_caption_length(_WORDS)
    GitCheckpoint(model, image_processor, tokenizer).save(folder)
    return folder
