"""GIT checkpoints: loading, saving, and small models with random weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, CLIPImageProcessorPil, GitConfig, GitProcessor
from transformers.utils import logging as transformers_logging

from pipeline.config.errors import ConfigError
from pipeline.config.sections.finetune import Scratch
from pipeline.models.base import Checkpoint
from pipeline.models.git.modeling import GitForCausalLM
from pipeline.models.git.parity import check_loss
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

        Raises:
            ConfigError: the file lacks weights that `config.json` asks for.
        """
        model, info = GitForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        if info["missing_keys"]:
            # The library would continue with random weights in their place.
            first = ", ".join(sorted(info["missing_keys"])[:3])
            raise ConfigError(
                f"{folder}: its weights lack {len(info['missing_keys'])} tensors that its config.json asks for"
                f" ({first}, ...); download or copy the checkpoint again"
            )
        image_processor = CLIPImageProcessorPil.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return GitCheckpoint(model, image_processor, tokenizer)

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

    def self_check(self) -> None:
        """Compare the loss with stock transformers' on a tiny model; see `check_loss`."""
        check_loss()
