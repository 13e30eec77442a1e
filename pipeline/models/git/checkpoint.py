"""GIT checkpoints: loading, saving, and small models with random weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, CLIPImageProcessorPil, GitConfig, GitProcessor
from transformers.utils import logging as transformers_logging

from pipeline.config.errors import ConfigError
from pipeline.config.sections.finetune import Scratch
from pipeline.models import checkpoint_files
from pipeline.models.base import Checkpoint
from pipeline.models.git.modeling import GitForCausalLM
from pipeline.models.git.parity import check
from pipeline.models.wordpiece import train_wordpiece


@dataclass(frozen=True)
class GitCheckpoint(Checkpoint):
    """A GIT model with its image processor and tokenizer."""

    model: GitForCausalLM

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write a checkpoint that stock `AutoModelForCausalLM` and `AutoProcessor` load."""
        transformers_logging.disable_progress_bar()
        self.model.write(folder, weights)
        GitProcessor(self.image_processor, self.tokenizer).save_pretrained(folder)


class Git:
    """The architecture behind `model_type: git`; see `pipeline.models.base.Architecture`."""

    def load(self, folder: Path) -> GitCheckpoint:
        """Load a GIT checkpoint; weights saved in half precision become float32.

        `config.json` is compared with the headers of the weights first: the model that it asks for is built without
        memory (on torch's device `meta`), after its numbers of layers are checked.

        Raises:
            ConfigError: config, weights, image processor or tokenizer do not fit each other.
        """
        config = GitConfig.from_pretrained(folder)
        _check_config(folder / "config.json", config)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            expected = checkpoint_files.meta_shapes(GitForCausalLM(config))
        if config.tie_word_embeddings:
            expected.pop("output.weight")
        checkpoint_files.check_shapes(folder, expected, checkpoint_files.weight_shapes(folder))
        model, info = GitForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        if info["missing_keys"]:
            # The library would continue with random weights in their place.
            raise ConfigError(checkpoint_files.lacking(folder, sorted(info["missing_keys"])))
        image_processor = CLIPImageProcessorPil.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        checkpoint = GitCheckpoint(model, image_processor, tokenizer)
        generation = model.generation_config
        checkpoint_files.check_tokenizer(
            folder, checkpoint, config.vocab_size, generation.bos_token_id, generation.eos_token_id
        )
        checkpoint_files.check_caption_length(folder, generation.max_length, model.max_tokens)
        return checkpoint

    def scratch(self, sizes: Scratch, captions: Iterable[str], max_tokens: int) -> GitCheckpoint:
        """Create a small GIT with random weights (torch's seed decides) and a tokenizer trained on `captions`."""
        tokenizer = train_wordpiece(captions, sizes.vocabulary, max_tokens)
        # GIT-base's 0.02 leaves a model this narrow on a plateau for many epochs. The spread of a layer's output
        # matters, so the range grows as the width shrinks.
        spread = min(0.1, sizes.hidden_size**-0.5)
        vision = {
            "hidden_size": sizes.hidden_size,
            "intermediate_size": 4 * sizes.hidden_size,
            "num_hidden_layers": sizes.image_layers,
            "num_attention_heads": sizes.heads,
            "image_size": sizes.image_size,
            "patch_size": sizes.patch_size,
            "attention_dropout": sizes.dropout,
            # One kernel instead of the three of CLIP's `quick_gelu`, which cost a fifth of a training step.
            "hidden_act": "gelu",
            "initializer_range": spread,
        }
        config = GitConfig(
            vision_config=vision,
            vocab_size=len(tokenizer),
            hidden_size=sizes.hidden_size,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=sizes.heads,
            intermediate_size=4 * sizes.hidden_size,
            hidden_dropout_prob=sizes.dropout,
            attention_probs_dropout_prob=sizes.dropout,
            max_position_embeddings=max(64, max_tokens),
            initializer_range=spread,
            bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.sep_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        side = sizes.image_size
        image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        )
        return GitCheckpoint(GitForCausalLM(config), image_processor, tokenizer)

    def self_check(self, device: torch.device) -> None:
        """Compare with stock transformers on a tiny model; see `check`."""
        check(device)


def _check_config(file: Path, config: Any) -> None:
    """Check the sizes that cost memory or time before any weight is compared.

    Raises:
        ConfigError: one is out of range, or the checkpoint captions videos.
    """
    # Stock GIT takes this many frames per video, and adds an embedding of its time to each.
    if config.num_image_with_embedding:
        raise ConfigError(
            f"{file}: num_image_with_embedding: found {config.num_image_with_embedding!r}, so this checkpoint captions"
            " videos, not pictures; choose one for pictures, like microsoft/git-base"
        )
    vision = config.vision_config
    sizes = [
        ("num_hidden_layers", config.num_hidden_layers, checkpoint_files.MAX_LAYERS),
        ("vision_config.num_hidden_layers", vision.num_hidden_layers, checkpoint_files.MAX_LAYERS),
        ("vision_config.image_size", vision.image_size, checkpoint_files.MAX_IMAGE_SIZE),
        ("vision_config.patch_size", vision.patch_size, checkpoint_files.MAX_IMAGE_SIZE),
    ]
    for name, value, most in sizes:
        checkpoint_files.check_size(file, name, value, most)
    tokens = (vision.image_size // vision.patch_size) ** 2
    checkpoint_files.check_size(file, "(image_size / patch_size) squared", tokens, checkpoint_files.MAX_IMAGE_TOKENS)
    if vision.num_channels != 3:
        raise ConfigError(f"{file}: vision_config.num_channels: found {vision.num_channels}, pictures have 3")
