"""Training on pictures that are held in memory: what the studies of training and decoding share."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import Dataset

from benchmarks._workspace import ROOT
from pipeline.config.sections.finetune import Augmentation, Finetune, Lora, Scratch, SelfCritical
from pipeline.data.dataset import Example, PictureReader, read_examples
from pipeline.models import factory
from pipeline.models.base import Checkpoint, Decoding
from pipeline.models.cnn.encoder import encode, image_processor, imagenet_encoder
from pipeline.models.inputs import normalize, resize_and_crop
from pipeline.runtime.state_store import StateStore
from pipeline.training.data import TrainingData
from pipeline.training.feature_cache import ENCODE_BATCH, FeatureEncoder
from pipeline.training.processes import Processes
from pipeline.training.trainer import Trainer

# The start, and the peak learning rate that suits it.
RATES = {
    "cnn-attention": 3e-3,
    "cnn-lstm": 3e-3,
    "cnn-rnn": 2e-3,
    "cnn-git": 1e-3,
    "git-demo": 1e-3,
    "scratch": 1e-3,
}
GIT_DEMO = ROOT / "models/git-demo"


class Pictures:
    """All pictures of a data set with their captions, and what is computed of them once."""

    def __init__(self, folder: Path) -> None:
        found: list[tuple[Example, bytes, str]] = []
        for split in ("train", "validation", "test"):
            reader = PictureReader(folder / split)
            found += [(example, reader.read(example.file_name), split) for example in read_examples(folder / split)]
        found.sort(key=lambda one: one[0].file_name)  # a hash, so the order is by chance
        self.examples = [example for example, _, _ in found]
        self.bytes = [data for _, data, _ in found]
        self._splits = [split for _, _, split in found]
        self._inputs: dict[str, torch.Tensor] = {}

    def split(self, name: str) -> list[int]:
        """Return the indices of the pictures in a split of the data set."""
        return [i for i, split in enumerate(self._splits) if split == name]

    @torch.inference_mode()
    def features(self) -> torch.Tensor:
        """Return the CNN's features, `(pictures, cells, width)`."""
        if "cnn" not in self._inputs:
            eyes, processor = imagenet_encoder().eval(), image_processor()
            start = time.process_time()
            resized = self._resized(processor)
            rows = [encode(eyes, normalize(processor, part)) for part in resized.split(8)]
            self._inputs["cnn"] = torch.cat(rows).contiguous().clone()
            print(f"encoded {len(self.bytes)} pictures in {time.process_time() - start:.0f} CPU seconds", flush=True)
        return self._inputs["cnn"]

    def features_of(self, checkpoint: Checkpoint) -> torch.Tensor:
        """Return the features of a checkpoint's own frozen image encoder, `(pictures, image tokens, width)`."""
        if "own" not in self._inputs:
            encoder = FeatureEncoder(checkpoint, torch.float32)
            rows = [row for part in self.pixels(checkpoint).split(ENCODE_BATCH) for row in encoder.rows([*part])]
            self._inputs["own"] = torch.stack([encoder.features(row) for row in rows])
        return self._inputs["own"]

    def inputs(self, start: str, checkpoint: Checkpoint) -> torch.Tensor:
        """Return what a start is trained on: pixels or features."""
        if start == "scratch":
            return self.pixels(checkpoint)
        return self.features_of(checkpoint) if start == "git-demo" else self.features()

    def pixels(self, checkpoint: Checkpoint) -> torch.Tensor:
        """Return the pictures at a checkpoint's size, `(pictures, 3, height, width)` uint8."""
        key = f"{checkpoint.image_size} pixels"
        if key not in self._inputs:
            self._inputs[key] = self._resized(checkpoint.image_processor)
        return self._inputs[key]

    def _resized(self, processor: object) -> torch.Tensor:
        opened = (Image.open(io.BytesIO(data)).convert("RGB") for data in self.bytes)
        return torch.cat([resize_and_crop(processor, [image]) for image in opened])  # type: ignore[arg-type]


class Rows(Dataset[torch.Tensor]):
    """Some rows of a tensor."""

    def __init__(self, tensor: torch.Tensor, indices: Sequence[int]) -> None:
        self._tensor, self._indices = tensor, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._tensor[self._indices[index]]


class Silent:
    """A `TrainingLogger` that logs nothing."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Log nothing."""

    def samples(self, captions: Sequence[Sequence[str]], best_epoch: int) -> None:
        """Show nothing."""


def settings(start: str, epochs: int, seed: int) -> Finetune:
    """Return the same settings for every start, except the rate and what is frozen."""
    return Finetune(
        checkpoint=str(GIT_DEMO) if start == "git-demo" else start,
        revision=None,
        scratch=Scratch(
            image_size=96,
            patch_size=12,
            hidden_size=128,
            heads=4,
            image_layers=3,
            text_layers=2,
            vocabulary=2000,
            dropout=0.1,
        ),
        freeze="none" if start == "scratch" else "image_encoder",
        lora=Lora(rank=0, alpha=16.0, dropout=0.0),
        epochs=epochs,
        batch_size=8,
        accumulation=1,
        captions_per_picture="all",
        new_tokens=0,
        augmentation=Augmentation(crop=0.0, colour=0.0, mirror=False),
        learning_rate=RATES[start],
        schedule="cosine",
        warmup=0.1,
        weight_decay=0.01,
        label_smoothing=0.1,
        gradient_clip=1.0,
        precision="float32",
        gradient_checkpointing=False,
        max_tokens=48,
        best_by="cider",
        validation_captions=100,
        patience=0,
        self_critical=SelfCritical(
            epochs=0,
            samples=5,
            learning_rate="auto",
            reward="CIDEr-D",
            cross_entropy=0.1,
            least_distinct=0.9,
        ),
        seed=seed,
    )


def prepared(
    pictures: Pictures, start: str, chosen: Finetune, train: Sequence[int], validation: Sequence[int], store: StateStore
) -> Trainer:
    """Return a trainer of a new model; seeds torch, so train with it before the next is made.

    Args:
        start: a key of `RATES`.
        train, validation: the indices of their pictures.
        store: gets the best epoch.
    """
    torch.manual_seed(chosen.seed)
    examples = pictures.examples
    if start == "git-demo":
        checkpoint = factory.load(GIT_DEMO)
    else:
        captions = [caption for i in train for caption in examples[i].captions]
        checkpoint = factory.create(start, chosen.scratch, captions, chosen.max_tokens)
    checkpoint.model.set_caption_length(chosen.max_tokens)
    inputs = pictures.inputs(start, checkpoint)
    data = TrainingData(
        [examples[i] for i in train],
        [examples[i] for i in validation],
        lambda epoch: Rows(inputs, train),
        Rows(inputs, validation),
    )
    processes = Processes(Accelerator(cpu=True))
    return Trainer(checkpoint, data, chosen, processes, torch.float32, store, state_minutes=1e6)


@torch.inference_mode()
def captioned(
    pictures: Pictures, start: str, checkpoint: Checkpoint, indices: Sequence[int], decoding: Decoding
) -> list[str]:
    """Return a caption for each of some pictures."""
    inputs = pictures.inputs(start, checkpoint)
    checkpoint.model.eval()
    texts: list[str] = []
    for part in torch.tensor(indices).split(25):
        pixels = normalize(checkpoint.image_processor, inputs[part]) if start == "scratch" else None
        features = None if start == "scratch" else inputs[part]
        tokens = checkpoint.model.generate_captions(pixels, features, decoding)
        texts += checkpoint.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return texts
