from __future__ import annotations

import io
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import GitProcessor

from pipeline.data.dataset import Example, PictureReader, PictureWriter
from pipeline.models.inputs import Batch, caption_tokens, normalize
from pipeline.training import loader
from tests.conftest import jpeg
from tests.models.git.test_checkpoint import small

TOKENS = [[[1, k, 2], [1, k, k, 2]] for k in range(20)]


def test_an_epoch_has_every_picture_once_with_the_requested_captions() -> None:
    for each, many in ((None, 2), (1, 1), (2, 2), (7, 2)):
        captioned = loader.epoch_captions(TOKENS, seed=1, epoch=1, each=each)
        assert sorted(i for i, _ in captioned) == list(range(20))
        for i, captions in captioned:
            assert len(captions) == many
            assert len({tuple(caption) for caption in captions}) == many
            assert all(caption in TOKENS[i] for caption in captions)


def test_an_epoch_depends_only_on_seed_and_number() -> None:
    assert loader.epoch_captions(TOKENS, 1, 3, 1) == loader.epoch_captions(TOKENS, 1, 3, 1)
    assert loader.epoch_captions(TOKENS, 1, 3, 1) != loader.epoch_captions(TOKENS, 1, 4, 1)
    assert loader.epoch_captions(TOKENS, 1, 3, 1) != loader.epoch_captions(TOKENS, 2, 3, 1)


def test_captions_are_chosen_equally_often() -> None:
    epochs = [loader.epoch_captions(TOKENS, 0, epoch, each=1) for epoch in range(200)]
    chosen = Counter(len(caption) for epoch in epochs for _, (caption,) in epoch)
    assert abs(chosen[3] / 4000 - 0.5) < 0.03


@pytest.mark.parametrize("memory", [0, 2**30])
def test_batches_equal_the_output_of_the_checkpoint_processor(tmp_path: Path, memory: int) -> None:
    checkpoint = small()
    data = [jpeg("red", (90, 60)), jpeg("blue", (40, 80))]
    with PictureWriter(tmp_path) as writer:
        for k, picture in enumerate(data):
            writer.add(f"{k}.jpg", picture)
    examples = [Example(f"{k}.jpg", ["x"], "", [], []) for k in range(2)]
    pictures = loader.Pictures(examples, PictureReader(tmp_path), checkpoint, memory=memory)
    groups = loader.groups_of([(1, [[1, 5, 2], [1, 2]]), (0, [[1, 2]]), (1, [[1, 2]])], 2)
    batches = loader.batches(checkpoint, pictures, groups)
    first, second = batches
    images = [Image.open(io.BytesIO(picture)) for picture in data]
    expected = GitProcessor(checkpoint.image_processor, checkpoint.tokenizer)(
        images=images, return_tensors="pt"
    ).pixel_values
    assert torch.allclose(first.pixel_values, expected[[1, 0]], atol=1e-6)
    assert torch.allclose(second.pixel_values, expected[[1]], atol=1e-6)
    assert first.input_ids.tolist() == [[1, 5, 2], [1, 2, 0], [1, 2, 0]]
    assert first.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0]]
    assert first.picture_of.tolist() == [0, 0, 1]
    assert second.input_ids.tolist() == [[1, 2]]


class Together(Dataset[torch.Tensor]):
    """Pictures that can be read only two at a time."""

    def __init__(self) -> None:
        self._two = threading.Barrier(2, timeout=60)

    def __getitem__(self, index: int) -> torch.Tensor:
        self._two.wait()
        return torch.full((3, 32, 32), index, dtype=torch.uint8)


def test_pictures_are_read_ahead_and_keep_their_order() -> None:
    checkpoint = small()
    groups = loader.groups_of([(index, [[1, 2]]) for index in (3, 1, 2, 5, 4, 0)], 1)
    pixels = [batch.pixel_values for batch in loader.batches(checkpoint, Together(), groups)]
    plain = normalize(checkpoint.image_processor, torch.stack([torch.full((3, 32, 32), k) for k in (3, 1, 2, 5, 4, 0)]))
    assert torch.equal(torch.cat(pixels), plain)


GPU = torch.device("cuda")


@pytest.fixture
def pins(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The tensors that were copied into pinned memory, which a machine without a GPU does not have."""
    copies: list[torch.Tensor] = []

    def pin(self: torch.Tensor) -> torch.Tensor:
        copies.append(self.clone())
        return copies[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return copies


class Plain(Dataset[torch.Tensor]):
    """Pictures, each of its own brightness; reading number 99 fails."""

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 99:
            raise OSError("picture 99")
        return torch.full((3, 32, 32), index, dtype=torch.uint8)


class Encoded(Plain):
    """Features that are computed on every access."""

    reads_ahead = False

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        return [torch.full((5, 8), float(index)) for index in indices]


@pytest.mark.parametrize("kind", [Plain, Encoded])
def test_batches_for_a_gpu_are_the_same_in_pinned_memory(pins: list[torch.Tensor], kind: type[Plain]) -> None:
    checkpoint, groups = small(), loader.groups_of([(k, [[1, k + 3, 2], [1, 2]]) for k in range(7)], 2)
    plain = list(loader.batches(checkpoint, kind(), groups))
    assert not pins
    pinned = list(loader.batches(checkpoint, kind(), groups, GPU))
    assert len(plain) == len(pinned) == 4
    for one, other in zip(plain, pinned, strict=True):
        for name, tensor in vars(one).items():
            copy = vars(other)[name]
            assert (tensor is None) == (copy is None)
            assert tensor is None or torch.equal(tensor, copy)
            assert copy is None or any(copy is pin for pin in pins)


@pytest.mark.parametrize(("kind", "ahead"), [(Plain, True), (Encoded, False)])
def test_batches_for_a_gpu_are_put_together_while_it_computes(
    monkeypatch: pytest.MonkeyPatch, kind: type[Plain], ahead: bool
) -> None:
    second = threading.Event()
    made: list[Batch] = []

    def pinned(self: Batch) -> Batch:
        made.append(self)
        if len(made) == 2:
            second.set()
        return self

    monkeypatch.setattr(Batch, "pinned", pinned)
    groups = loader.groups_of([(k, [[1, 2]]) for k in range(40)], 1)
    given = loader.batches(small(), kind(), groups, GPU)
    next(given)
    assert second.wait(60 if ahead else 0) is ahead  # without asking for the second
    next(given)
    assert len(made) <= 5  # not the whole epoch


def test_an_error_while_reading_ahead_reaches_the_training(pins: list[torch.Tensor]) -> None:
    groups = loader.groups_of([(k, [[1, 2]]) for k in (0, 1, 99, 3)], 1)
    given = loader.batches(small(), Plain(), groups, GPU)
    next(given), next(given)
    with pytest.raises(OSError, match="picture 99"):
        next(given)


def test_a_batch_is_copied_without_waiting_to_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[torch.device, bool]] = []

    def to(self: torch.Tensor, device: torch.device, non_blocking: bool = False) -> torch.Tensor:
        asked.append((device, non_blocking))
        return self

    batch = next(loader.batches(small(), Plain(), [[(1, [[1, 2]])]]))
    moved = batch.to(torch.device("meta"))
    tensors = [tensor for tensor in vars(moved).values() if tensor is not None]
    assert [tensor.device.type for tensor in tensors] == ["meta"] * 4
    monkeypatch.setattr(torch.Tensor, "to", to)
    for kind in ("cuda", "cpu", "mps"):
        asked.clear()
        batch.to(torch.device(kind))
        assert asked == [(torch.device(kind), kind == "cuda")] * 4


def test_captions_are_truncated_to_max_tokens_with_both_marks() -> None:
    checkpoint = small()
    ((tokens,),) = caption_tokens(checkpoint, [["a red star " * 30]], 10)
    assert len(tokens) == 10
    assert tokens[0] == checkpoint.tokenizer.cls_token_id
    assert tokens[-1] == checkpoint.tokenizer.sep_token_id
