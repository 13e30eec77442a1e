"""GIT checkpoints, in and out: a folder or a hub name -> model and processor; and `scratch`, built on the spot."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    GitConfig,
    GitProcessor,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from pipeline.config.errors import ConfigError, TemporaryError
from pipeline.config.sections.finetune import REGISTERED, Scratch
from pipeline.models.git.modeling import GitForCausalLM
from pipeline.tracking import registry

SCRATCH = "scratch"
# No pickled weights (*.bin, *.pt, *.ckpt): unpickling a stranger's file runs the stranger's code.
_FILES = ["*.json", "*.txt", "*.safetensors"]
_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


@dataclass(frozen=True)
class Checkpoint:
    """A GIT model with what turns pictures and captions into its inputs, and back."""

    model: GitForCausalLM
    image_processor: CLIPImageProcessorPil
    tokenizer: PreTrainedTokenizerFast

    @property
    def image_size(self) -> int:
        """The side, in pixels, of the square picture that the model sees."""
        return int(self.model.config.vision_config.image_size)

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write a plain Hugging Face checkpoint: `AutoModelForCausalLM` and `AutoProcessor` load it.

        Args:
            folder: where to.
            weights: in place of the model's own.
        """
        transformers_logging.disable_progress_bar()
        self.model.save_pretrained(folder, state_dict=weights)
        GitProcessor(self.image_processor, self.tokenizer).save_pretrained(folder)


def locate(name: str, revision: str | None) -> Path:
    """The folder of a checkpoint: `name` itself where it is a folder, a registered version's, or the hub's copy.

    Raises:
        TemporaryError: the hub or MLflow can't be reached, and the commit is not on this machine yet.
        ConfigError: the hub has no such checkpoint or commit, or MLflow no such version.
    """
    if Path(name).is_dir():
        return Path(name)
    if name.startswith(REGISTERED):
        return registry.checkpoint_of(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError, HFValidationError) as error:
        raise ConfigError(
            f"params.yaml: finetune.checkpoint: the hub gives no {name} at {revision} ({type(error).__name__});"
            " correct the name and finetune.revision"
        ) from None
    except Exception as error:  # down to the HTTP library's own
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TemporaryError(
            f"params.yaml: finetune.checkpoint: {name} at {revision} is not on this machine and the hub can't be"
            f" reached ({type(error).__name__}); run again when it can, or bring the checkpoint's folder"
            " (`hf download` on another machine) and name that folder"
        ) from None


def load(folder: Path) -> Checkpoint:
    """Load a GIT checkpoint from a folder.

    Raises:
        ConfigError: the folder has no GIT checkpoint with safetensors weights; names the file and the mend.
    """
    config_file = folder / "config.json"
    try:
        kind = json.loads(config_file.read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError:
        raise ConfigError(f"{config_file}: not found; name a folder with a GIT checkpoint") from None
    except (ValueError, AttributeError):
        raise ConfigError(f"{config_file}: is no JSON object; bring the checkpoint again") from None
    if kind != "git":
        raise ConfigError(
            f"{config_file}: model_type is {kind!r}, not 'git'; name a GIT checkpoint, like microsoft/git-base"
        )
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"{folder}: has no .safetensors weights (pickled weights are not loaded, for they can run code);"
            " convert them on a machine that trusts them: `save_pretrained` writes safetensors"
        )
    try:
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()  # what it would warn about is checked below
        model, found = GitForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        image_processor = CLIPImageProcessorPil.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the libraries raise many kinds, down to the safetensors reader's own
        raise ConfigError(
            f"{folder}: can't be loaded as a GIT checkpoint: {type(error).__name__}: {error}; bring it again"
        ) from None
    if found["missing_keys"]:
        # The library would go on with random weights in their place.
        some = ", ".join(sorted(found["missing_keys"])[:3])
        raise ConfigError(
            f"{folder}: its weights lack {len(found['missing_keys'])} that its config.json asks for ({some}, ...);"
            " bring the checkpoint again"
        )
    return Checkpoint(model, image_processor, tokenizer)


def scratch(sizes: Scratch, captions: Iterable[str], max_tokens: int) -> Checkpoint:
    """A small GIT with random weights (torch's seed decides) and a WordPiece tokenizer trained on `captions`."""
    tokenizer = _wordpiece(captions, sizes.vocabulary, max_tokens)
    # Weights as small as GIT-base's 0.02 leave a model this narrow on a plateau for many epochs: what
    # matters is the spread of a layer's output, so the range grows as the width shrinks.
    spread = min(0.1, sizes.hidden_size**-0.5)
    vision = {
        "hidden_size": sizes.hidden_size,
        "intermediate_size": 4 * sizes.hidden_size,
        "num_hidden_layers": sizes.image_layers,
        "num_attention_heads": sizes.heads,
        "image_size": sizes.image_size,
        "patch_size": sizes.patch_size,
        "attention_dropout": sizes.dropout,
        # CLIP's own `quick_gelu` is three kernels where this is one: a fifth of a training step, measured.
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
    return Checkpoint(GitForCausalLM(config), image_processor, tokenizer)


def _wordpiece(captions: Iterable[str], size: int, max_tokens: int) -> PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    captions = list(captions)
    normalizer = normalizers.BertNormalizer(lowercase=True)
    # As BERT's, but each emoji is a word of its own: else two side by side are a word that nobody has seen.
    emoji = pre_tokenizers.Split(Regex(r"[\p{So}\p{Sk}]"), "isolated")
    pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), emoji])
    words = {word for c in captions for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(c))}
    # The trainer numbers pieces like "##a" in the order of a hash map, so that the same captions give another
    # vocabulary each time (huggingface/tokenizers#1794). Told of all of them beforehand, it has none to number.
    inner = sorted({f"##{letter}" for word in words for letter in word[1:]})
    trained = Tokenizer(models.WordPiece(unk_token=_SPECIAL["unk_token"]))
    trained.normalizer, trained.pre_tokenizer = normalizer, pre_tokenizer
    special_tokens = [*_SPECIAL.values(), *inner]
    # What stands in one place only is spelled out: a piece that is seen once teaches nothing.
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=2, special_tokens=special_tokens, show_progress=False
    )
    trained.train_from_iterator(captions, trainer)

    tokenizer = Tokenizer(models.WordPiece(vocab=trained.get_vocab(), unk_token=_SPECIAL["unk_token"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    # As people write: "#sunset" and "can't", not "# sunset" and "can ' t".
    closed = [decoders.Replace(apart, together) for apart, together in (("# ", "#"), (" ' ", "'"), (" :", ":"))]
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(), decoders.Fuse(), *closed])
    begin, end = _SPECIAL["cls_token"], _SPECIAL["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        special_tokens=[(begin, tokenizer.token_to_id(begin)), (end, tokenizer.token_to_id(end))],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_tokens, **_SPECIAL)
