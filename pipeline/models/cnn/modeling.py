"""A CNN with a recurrent decoder, as a Hugging Face model: `AutoModel` loads it once this module is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModel, EfficientNetModel, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from pipeline.config.errors import ConfigError
from pipeline.models.base import Decoding, is_target_of
from pipeline.models.cnn.configuration import CnnCaptionerConfig
from pipeline.models.cnn.decoder import Decoder, Memory, State
from pipeline.models.cnn.encoded import CnnEncoded

_MAX_TOKENS = 1024  # a recurrent decoder has no limit of its own


class RecurrentCache:
    """The state of a generation, in the place of transformers' key-value cache.

    The rows of a picture (its beams or samples) are adjacent, and each picture has the same number.

    Args:
        memory: one row per picture.
    """

    is_compileable = False

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.state: State | None = None
        self.length = 0

    def get_seq_length(self, *_: Any) -> int:
        """Return the number of tokens that were read."""
        return self.length

    def expand(self, rows: int) -> None:
        """Repeat each picture's memory for its beams or samples."""
        pictures = len(self.memory.pooled)
        if rows != pictures:
            picture_of = torch.arange(pictures, device=self.memory.pooled.device)
            self.memory = self.memory.of(picture_of.repeat_interleave(rows // pictures))

    def reorder_cache(self, beams: torch.Tensor) -> None:
        """Continue with other beams; each is of the same picture, so the memory stays."""
        assert self.state is not None
        self.state = tuple(tensor.index_select(0, beams) for tensor in self.state)


class CnnCaptioner(PreTrainedModel, GenerationMixin, CnnEncoded):  # type: ignore[misc]  # transformers is untyped here
    """An EfficientNet that encodes a picture once, and a recurrent decoder that captions it."""

    config_class = CnnCaptionerConfig
    base_model_prefix = "captioner"
    main_input_name = "input_ids"

    if TYPE_CHECKING:  # attributes that transformers sets
        config: Any
        generation_config: Any
        generate: Any
        post_init: Any
        save_pretrained: Any

    def __init__(self, config: CnnCaptionerConfig) -> None:
        super().__init__(config)
        self.encoder = EfficientNetModel(config.encoder_config)
        self.decoder = Decoder(config, self.config.encoder_config.hidden_dim)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Keep torch's initial weights: transformers' N(0, 0.02) is far too small for a recurrent cell."""

    @property
    def image_encoder(self) -> torch.nn.Module:
        """The EfficientNet."""
        eyes: torch.nn.Module = self.encoder
        return eyes

    @property
    def max_tokens(self) -> int:
        """The longest caption, in tokens."""
        return _MAX_TOKENS

    @property
    def suitable_learning_rate(self) -> float:
        """Far above that of transformers (measured: 1e-3 learns less in as many epochs)."""
        return 2e-3 if self.config.decoder_type == "rnn" else 3e-3

    def set_caption_length(self, max_tokens: int) -> None:
        """Set the `max_length` of the generation config."""
        self.generation_config.max_length = max_tokens

    def lora_targets(self, with_image_encoder: bool) -> str:
        """Raise a `ConfigError`: LoRA adapts attention projections of transformers."""
        raise ConfigError(
            f"params.yaml: finetune.lora.rank: LoRA does not apply to CNN captioners ({self.config.decoder_type});"
            " set it to 0"
        )

    def enable_gradient_checkpointing(self) -> None:
        """Raise a `ConfigError`: the decoder's activations are small."""
        raise ConfigError(
            "params.yaml: finetune.gradient_checkpointing: CNN captioners do not support it; set it to false, and"
            " set finetune.accumulation to auto if memory is short"
        )

    def write(self, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write what `AutoModel.from_pretrained` loads."""
        self.save_pretrained(folder, state_dict=weights)

    def caption_loss(
        self,
        pixel_values: torch.Tensor | None,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        picture_of: torch.Tensor,
        features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed cross-entropy of predicting each token from the ones before it, and the number of targets.

        Padding is never a target. For the arguments see `CaptionModel`.
        """
        if features is None:
            assert pixel_values is not None
            features = self.encode(pixel_values)
        is_target = attention_mask[:, 1:].bool()
        logits = self._logits(features, input_ids[:, :-1], picture_of, is_target)
        targets = (input_ids if labels is None else labels)[:, 1:][is_target]
        loss = cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=label_smoothing)
        return loss, is_target.sum()

    def log_probabilities(
        self,
        pixel_values: torch.Tensor | None,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        picture_of: torch.Tensor,
        features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the log-probability of each caption (nats), `(captions,)`, with gradients."""
        if features is None:
            assert pixel_values is not None
            features = self.encode(pixel_values)
        return self._sums(features, input_ids, attention_mask[:, 1:].bool(), picture_of)

    @property
    def attends(self) -> bool:
        """Whether the decoder is `attention`."""
        return self.decoder.attends

    @torch.inference_mode()
    def attention(self, features: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the weights of the grid's cells, `(captions, length - 1, cells)`; see `CaptionModel`."""
        return self.decoder.attention(input_ids[:, :-1], self.decoder.look(features))

    def _logits(
        self, features: torch.Tensor, input_ids: torch.Tensor, picture_of: torch.Tensor, is_target: torch.Tensor
    ) -> torch.Tensor:
        """Return the logits of the targets, `(targets, vocab_size)`."""
        memory = self.decoder.look(features).of(picture_of)
        return self.decoder.logits(self.decoder.read(input_ids, memory)[is_target])

    def _sums(
        self, features: torch.Tensor, input_ids: torch.Tensor, is_target: torch.Tensor, picture_of: torch.Tensor
    ) -> torch.Tensor:
        """Return the summed log-probability of the targets of each caption, `(captions,)`."""
        logits = self._logits(features, input_ids[:, :-1], picture_of, is_target)
        log_probabilities = -cross_entropy(logits.float(), input_ids[:, 1:][is_target], reduction="none")
        sums = torch.zeros(len(input_ids), device=logits.device)
        return sums.index_add(0, is_target.nonzero()[:, 0], log_probabilities)

    @torch.inference_mode()
    def generate_captions(
        self, pixel_values: torch.Tensor | None, features: torch.Tensor | None, decoding: Decoding
    ) -> torch.Tensor:
        """Search or sample with transformers' `generate`; a picture is encoded once for all its beams and samples."""
        if features is None:
            assert pixel_values is not None
            features = self.encode(pixel_values)
        cache = RecurrentCache(self.decoder.look(features))
        start = [self.generation_config.bos_token_id, *decoding.prompt]
        begin = torch.tensor([start] * len(features), device=features.device)
        tokens: torch.Tensor = self.generate(input_ids=begin, past_key_values=cache, **decoding.generate_options())
        return tokens

    @torch.inference_mode()
    def generate_with_scores(self, features: torch.Tensor, decoding: Decoding) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens, and the mean log-probability per token of each caption from the same features."""
        tokens = self.generate_captions(None, features, decoding)
        is_target = is_target_of(tokens, self.generation_config.eos_token_id)
        pictures = torch.arange(len(features), device=features.device)
        picture_of = pictures.repeat_interleave(len(tokens) // len(features))
        return tokens, self._sums(features, tokens, is_target, picture_of) / is_target.sum(dim=1)

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, past_key_values: RecurrentCache | None = None, **_: Any
    ) -> dict[str, Any]:
        """Return what `forward` needs for the next token: the tokens it has not read, and the state before them."""
        read = past_key_values.length if past_key_values is not None else 0
        return {"input_ids": input_ids[:, read:], "past_key_values": past_key_values}

    def forward(
        self, input_ids: torch.Tensor, past_key_values: RecurrentCache | None = None, **_: Any
    ) -> CausalLMOutputWithPast:
        """Take a step of generation: read tokens `(rows, new)`, return the logits after them, `(rows, 1, words)`."""
        cache = past_key_values
        if cache is None:
            raise ValueError("CnnCaptioner.forward takes a step of generation; use `generate_captions`")
        if cache.state is None:
            cache.expand(len(input_ids))
            cache.state = self.decoder.start(cache.memory)
        for words in self.decoder.words(input_ids).unbind(dim=1):
            output, cache.state, _attention = self.decoder.step(words, cache.state, cache.memory)
            cache.length += 1
        return CausalLMOutputWithPast(logits=self.decoder.logits(output)[:, None], past_key_values=cache)


AutoConfig.register(CnnCaptionerConfig.model_type, CnnCaptionerConfig, exist_ok=True)
AutoModel.register(CnnCaptionerConfig, CnnCaptioner, exist_ok=True)
