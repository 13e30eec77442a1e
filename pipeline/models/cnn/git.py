"""GIT's decoder on the grid of a CNN: all of GIT's training and generation, with another image encoder."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, EfficientNetConfig, EfficientNetModel, GitConfig

from pipeline.models.cnn import encoder
from pipeline.models.cnn.encoded import CnnEncoded
from pipeline.models.cnn.encoder import LICENSE
from pipeline.models.git.modeling import GitForCausalLM


class CnnGitConfig(GitConfig):  # type: ignore[misc]  # transformers is untyped here
    """GIT's configuration with that of the CNN.

    Attributes:
        encoder_config: of the EfficientNet. `vision_config` repeats its sizes for GIT's projection; the vision
            transformer that it describes has no layers and is replaced.
        encoder_license: where its weights come from, and their licence.
    """

    model_type = "cnn-git"
    sub_configs_defaults = {**GitConfig.sub_configs_defaults, "encoder_config": EfficientNetConfig}  # noqa: RUF012

    encoder_config: dict | EfficientNetConfig | None = None
    encoder_license: str = LICENSE


class CnnGitForCausalLM(CnnEncoded, GitForCausalLM):
    """GIT with an EfficientNet as its image encoder."""

    config_class = CnnGitConfig

    def __init__(self, config: CnnGitConfig) -> None:
        super().__init__(config)
        self.git.image_encoder = EfficientNetModel(self.config.encoder_config)


def small_config(encoder_config: EfficientNetConfig, **vocabulary: Any) -> CnnGitConfig:
    """Return the configuration of a decoder that some hundred photos can train.

    Args:
        encoder_config: of the encoder.
        vocabulary: `vocab_size`, `bos_token_id`, `eos_token_id`, `pad_token_id`, `max_position_embeddings`.
    """
    width, rate = 256, 0.3
    vision = {
        "hidden_size": encoder_config.hidden_dim,
        "num_hidden_layers": 0,
        "image_size": encoder_config.image_size,
        "patch_size": encoder.STRIDE,
    }
    return CnnGitConfig(
        encoder_config=encoder_config,
        vision_config=vision,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=4 * width,
        hidden_dropout_prob=rate,
        attention_probs_dropout_prob=rate,
        initializer_range=width**-0.5,
        **vocabulary,
    )


AutoConfig.register(CnnGitConfig.model_type, CnnGitConfig, exist_ok=True)
AutoModelForCausalLM.register(CnnGitConfig, CnnGitForCausalLM, exist_ok=True)
