"""The input of a training: examples, and their pictures as pixels, augmented pixels, or features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from pipeline.config import paths
from pipeline.config.errors import ConfigError
from pipeline.config.params import Params
from pipeline.data.dataset import Example, PictureReader, fair_share, read_examples
from pipeline.models.base import Checkpoint
from pipeline.training.augmentation import Augmented
from pipeline.training.feature_cache import FeatureCache, FeatureEncoder, NoRoomError, UncachedFeatures
from pipeline.training.loader import Pictures

Split = Dataset[torch.Tensor]


@dataclass(frozen=True)
class TrainingData:
    """The data of a training.

    Attributes:
        train: the training examples.
        validation: the validation examples; the first ones are captioned after each epoch.
        train_pictures: returns the training pictures of an epoch, or their features.
        validation_pictures: the validation pictures, or their features.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    train_pictures: Callable[[int], Split]
    validation_pictures: Split


def read_splits(validation_captions: int) -> tuple[list[Example], list[Example]]:
    """Return the training and the validation examples; validation begins with a fair share of that size.

    Raises:
        ConfigError: there are no validation examples.
    """
    train, validation = read_examples(paths.DATASET / "train"), read_examples(paths.DATASET / "validation")
    if not validation:
        raise ConfigError("params.yaml: build.validation: is 0, but the best epoch is chosen by it; set it to 0.1")
    captioned = fair_share(validation, validation_captions)
    first = {example.sha256 for example in captioned}
    return train, [*captioned, *(example for example in validation if example.sha256 not in first)]


def open_pictures(
    checkpoint: Checkpoint,
    train: Sequence[Example],
    validation: Sequence[Example],
    params: Params,
    dtype: torch.dtype,
    stage: str | None,
) -> TrainingData:
    """Return the data of a training.

    With a frozen image encoder and no augmentation, a picture's features never change. They come from the cache; if
    they do not fit, the encoder computes them each time, with the same bits.

    Args:
        checkpoint: the model, on its device.
        train: the training examples.
        validation: the validation examples.
        params: all params.
        dtype: dtype of matrix products.
        stage: stands before every line that is printed; None prints nothing.
    """
    settings = params.finetune

    def pictures(**memory: int) -> tuple[Pictures, Pictures]:
        return (
            Pictures(train, PictureReader(paths.DATASET / "train"), checkpoint, **memory),
            Pictures(validation, PictureReader(paths.DATASET / "validation"), checkpoint, **memory),
        )

    train_pictures, validation_pictures = pictures()
    if settings.augmentation.is_on:
        return TrainingData(
            train,
            validation,
            lambda epoch: Augmented(train_pictures, train, settings.augmentation, settings.seed, epoch),
            validation_pictures,
        )
    if settings.freeze == "none":
        return TrainingData(train, validation, lambda epoch: train_pictures, validation_pictures)
    encoder = FeatureEncoder(checkpoint, dtype)
    train_features: Split
    validation_features: Split
    try:
        limit = int(params.runtime.feature_cache_gb * 1e9)
        cache = FeatureCache(encoder, pictures(memory=0), paths.FEATURES, limit)
        train_features, validation_features = cache.splits()
    except NoRoomError as error:
        if stage:
            print(f"{stage}: runtime.feature_cache_gb: features take {error}; pictures are encoded in every epoch")
        train_features = UncachedFeatures(encoder, train_pictures)
        validation_features = UncachedFeatures(encoder, validation_pictures)
    return TrainingData(train, validation, lambda epoch: train_features, validation_features)
