"""CNN captioners: loading, saving, and new ones on the ImageNet encoder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, CLIPImageProcessorPil
from transformers.utils import logging as transformers_logging

from pipeline.config.errors import ConfigError
from pipeline.config.sections.finetune import Scratch
from pipeline.models import checkpoint_files
from pipeline.models.base import Checkpoint
from pipeline.models.cnn import encoder
from pipeline.models.cnn.configuration import DECODERS, CnnCaptionerConfig, check_encoder
from pipeline.models.cnn.git import CnnGitConfig, CnnGitForCausalLM, small_config
from pipeline.models.cnn.modeling import CnnCaptioner
from pipeline.models.git.parity import check
from pipeline.models.wordpiece import train_wordpiece


class Recurrent:
    """The architecture behind `model_type: cnn-captioner`; see `pipeline.models.base.Architecture`.

    Args:
        decoder: the decoder of the captioner to create, `attention`, `lstm` or `rnn`; None loads only.
    """

    def __init__(self, decoder: str | None = None) -> None:
        self._decoder = decoder

    def load(self, folder: Path) -> Checkpoint:
        """Load a checkpoint; weights saved in half precision become float32.

        Raises:
            ConfigError: config, weights, image processor or tokenizer do not fit each other.
        """
        config = CnnCaptionerConfig.from_pretrained(folder)
        if config.decoder_type not in DECODERS:
            found = str(config.decoder_type)[:40]
            raise ConfigError(
                f"{folder / 'config.json'}: decoder_type: found {found!r}, known are {', '.join(DECODERS)}"
            )
        return _load(folder, config, CnnCaptioner)

    def scratch(self, sizes: Scratch, captions: Iterable[str], max_tokens: int) -> Checkpoint:
        """Create a captioner: the ImageNet encoder, a decoder with random weights, and a tokenizer from `captions`.

        Only `vocabulary` of `sizes` is used; the other sizes are the defaults of `CnnCaptionerConfig`.

        Raises:
            ConfigError: the package with the encoder's weights is missing or damaged.
        """
        transformers_logging.disable_progress_bar()
        eyes = encoder.imagenet_encoder()
        tokenizer = train_wordpiece(captions, sizes.vocabulary, max_tokens)
        config = CnnCaptionerConfig(
            encoder_config=eyes.config, decoder_type=self._decoder or DECODERS[0], **_tokens(tokenizer)
        )
        model = CnnCaptioner(config)
        model.encoder.load_state_dict(eyes.state_dict())
        return Checkpoint(model, encoder.image_processor(eyes.config.image_size), tokenizer)

    def self_check(self, device: torch.device) -> None:
        """Check that the encoder's weights are installed if a captioner will be created.

        Raises:
            ConfigError: they are not, or they are damaged.
        """
        if self._decoder:
            encoder.check_installed()


class GitOnCnn:
    """The architecture behind `model_type: cnn-git`; see `pipeline.models.base.Architecture`.

    Args:
        creates: whether a captioner will be created, for which the encoder's weights must be installed.
    """

    def __init__(self, creates: bool = False) -> None:
        self._creates = creates

    def load(self, folder: Path) -> Checkpoint:
        """Load a checkpoint; weights saved in half precision become float32.

        Raises:
            ConfigError: config, weights, image processor or tokenizer do not fit each other.
        """
        config, file = CnnGitConfig.from_pretrained(folder), folder / "config.json"
        checkpoint_files.check_size(file, "num_hidden_layers", config.num_hidden_layers, checkpoint_files.MAX_LAYERS)
        vision, eyes = config.vision_config, config.encoder_config
        if (vision.num_hidden_layers, vision.hidden_size, vision.image_size, vision.patch_size) != (
            0,
            eyes.hidden_dim,
            eyes.image_size,
            encoder.STRIDE,
        ):
            raise ConfigError(f"{file}: vision_config does not fit encoder_config; download or copy it again")
        return _load(folder, config, CnnGitForCausalLM)

    def scratch(self, sizes: Scratch, captions: Iterable[str], max_tokens: int) -> Checkpoint:
        """Create a captioner: the ImageNet encoder, GIT's decoder with random weights, and a tokenizer.

        Only `vocabulary` of `sizes` is used; `small_config` has the other sizes.

        Raises:
            ConfigError: the package with the encoder's weights is missing or damaged.
        """
        transformers_logging.disable_progress_bar()
        eyes = encoder.imagenet_encoder()
        tokenizer = train_wordpiece(captions, sizes.vocabulary, max_tokens)
        longest = max(64, max_tokens)
        model = CnnGitForCausalLM(small_config(eyes.config, max_position_embeddings=longest, **_tokens(tokenizer)))
        model.git.image_encoder.load_state_dict(eyes.state_dict())
        return Checkpoint(model, encoder.image_processor(eyes.config.image_size), tokenizer)

    def self_check(self, device: torch.device) -> None:
        """Compare GIT with stock transformers, and check that the encoder's weights are installed."""
        check(device)
        if self._creates:
            encoder.check_installed()


def _load(folder: Path, config: Any, kind: type[CnnCaptioner] | type[CnnGitForCausalLM]) -> Checkpoint:
    """Load a checkpoint after its `config.json` was compared with the headers of the weights."""
    check_encoder(folder / "config.json", config.encoder_config)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        expected = checkpoint_files.meta_shapes(kind(config))
    checkpoint_files.check_shapes(folder, expected, checkpoint_files.weight_shapes(folder))
    model, info = kind.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    if info["missing_keys"]:
        raise ConfigError(checkpoint_files.lacking(folder, sorted(info["missing_keys"])))
    image_processor = CLIPImageProcessorPil.from_pretrained(folder)
    checkpoint = Checkpoint(model, image_processor, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    generation = model.generation_config
    checkpoint_files.check_tokenizer(
        folder, checkpoint, config.vocab_size, generation.bos_token_id, generation.eos_token_id
    )
    checkpoint_files.check_caption_length(folder, generation.max_length, model.max_tokens)
    _check_encoding(folder, model)
    return checkpoint


def _check_encoding(folder: Path, model: CnnCaptioner | CnnGitForCausalLM) -> None:
    """Encode a grey picture: strides, widths and norms can be wrong though all weights have the expected shapes.

    Raises:
        ConfigError: the features have another shape than the model states, or are not finite.
    """
    with torch.inference_mode():
        features = model.eval().encode(torch.zeros(1, 3, model.image_size, model.image_size))
    if tuple(features.shape[1:]) != model.features_shape or not bool(features.isfinite().all()):
        found = " x ".join(map(str, features.shape[1:]))
        raise ConfigError(
            f"{folder / 'config.json'}: encoder_config: makes features of {found}, not"
            f" {' x '.join(map(str, model.features_shape))} finite numbers; download or copy the checkpoint again"
        )


def _tokens(tokenizer: Any) -> dict[str, int]:
    """Return what a configuration says of its tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
