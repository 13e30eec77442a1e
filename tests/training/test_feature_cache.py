from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from pipeline.data.dataset import Example, PictureReader, PictureWriter
from pipeline.models.base import Checkpoint
from pipeline.models.inputs import normalize
from pipeline.training.feature_cache import FeatureCache, FeatureEncoder, NoRoomError, UncachedFeatures
from pipeline.training.loader import Pictures
from tests.conftest import jpeg
from tests.models.git.test_checkpoint import small

COLOURS = ["red", "blue", "green", "white", "black", "orange", "pink", "brown", "grey", "navy", "teal"]
PLENTY = 10**9
ROW = 5 * 32 * 4 + 74  # small model: 4 patches and the class token, width 32, float32; plus the index line


def pictures(folder: Path, checkpoint: Checkpoint, colours: list[str]) -> Pictures:
    with PictureWriter(folder) as writer:
        for colour in colours:
            writer.add(f"{colour}.jpg", jpeg(colour))
    examples = [Example(f"{colour}.jpg", ["x"], colour, [], []) for colour in colours]
    return Pictures(examples, PictureReader(folder), checkpoint)


class Caches:
    """Feature caches in one folder, and the number of pictures encoded for the newest."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.encoded = folder, 0
        encode = FeatureCache._encode

        def counted(features: FeatureCache, indices: list[int]) -> list[bytes]:
            self.encoded += len(indices)
            return encode(features, indices)

        monkeypatch.setattr(FeatureCache, "_encode", counted)

    def open(
        self, colours: list[str], checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, limit: int = PLENTY
    ) -> FeatureCache:
        self.encoded = 0
        source = pictures(self.folder / "pictures", checkpoint, colours)
        return FeatureCache(FeatureEncoder(checkpoint, dtype), [source], self.folder / "cache", limit)

    def files(self) -> set[str]:
        return {path.name for path in (self.folder / "cache").glob("*.rows")}


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caches:
    return Caches(tmp_path, monkeypatch)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_features_equal_the_encoder_output(caches: Caches, dtype: torch.dtype, tolerance: float) -> None:
    checkpoint = small(dropout=0.5)
    checkpoint.model.train()
    features = caches.open(COLOURS, checkpoint, dtype)
    assert checkpoint.model.image_encoder.training  # as it was before
    source = pictures(caches.folder / "again", checkpoint, COLOURS)
    inputs = normalize(checkpoint.image_processor, torch.stack([source[i] for i in range(len(COLOURS))]))
    with torch.no_grad():
        expected = checkpoint.model.eval().git.image_encoder(inputs).last_hidden_state
    cached = torch.stack([features[i] for i in range(len(features))])
    assert cached.dtype == dtype
    assert torch.allclose(cached.float(), expected, atol=tolerance * expected.abs().max().item())


def test_the_loss_from_features_equals_the_loss_from_pictures(caches: Caches) -> None:
    checkpoint = small()
    features = caches.open(COLOURS[:2], checkpoint)
    source = pictures(caches.folder / "again", checkpoint, COLOURS[:2])
    inputs = normalize(checkpoint.image_processor, torch.stack([source[0], source[1]]))
    ids = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
    rest = (ids, (ids > 0).long(), torch.tensor([0, 1]))
    with torch.no_grad():
        expected, _ = checkpoint.model.eval().caption_loss(inputs, *rest)
        loss, _ = checkpoint.model.caption_loss(None, *rest, features=torch.stack([features[0], features[1]]))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_uncached_features_equal_cached_ones_in_any_order(caches: Caches, dtype: torch.dtype) -> None:
    checkpoint = small(dropout=0.5)
    checkpoint.model.train()
    cached = caches.open(COLOURS, checkpoint, dtype)
    uncached = UncachedFeatures(
        FeatureEncoder(checkpoint, dtype), pictures(caches.folder / "again", checkpoint, COLOURS)
    )
    order = [*reversed(range(len(COLOURS))), 3, 3]
    for index, features in zip(order, uncached.__getitems__(order), strict=True):
        assert torch.equal(features, cached[index])
        assert torch.equal(uncached[index], features)
        assert features.dtype == dtype


def test_each_picture_is_encoded_once(caches: Caches) -> None:
    first = caches.open(COLOURS[:5], small())
    assert caches.encoded == 5
    again = caches.open(COLOURS[:5], small())
    assert caches.encoded == 0
    more = caches.open(COLOURS[3:], small())
    assert caches.encoded == len(COLOURS) - 5
    for one, other in ((first[4], again[4]), (first[3], more[0]), (first[4], more[1])):
        assert torch.equal(one, other)


def test_a_row_does_not_depend_on_its_batch(caches: Caches) -> None:
    alone = caches.open(COLOURS[2:3], small())[0]
    for path in (caches.folder / "cache").iterdir():
        path.unlink()
    assert torch.equal(caches.open(COLOURS, small())[2], alone)


def test_other_encoder_weights_or_dtypes_have_their_own_files(caches: Caches) -> None:
    other = small()
    with torch.no_grad():
        next(other.model.git.image_encoder.parameters()).add_(0.1)
    words = small()
    with torch.no_grad():
        words.model.output.weight.add_(0.1)
    for checkpoint, dtype, encoded in (
        (small(), torch.float32, 3),
        (other, torch.float32, 3),
        (small(), torch.bfloat16, 3),
        (words, torch.float32, 0),
    ):
        caches.open(COLOURS[:3], checkpoint, dtype)
        assert caches.encoded == encoded
    assert len(caches.files()) == 3


def test_truncated_files_are_completed(caches: Caches) -> None:
    expected = caches.open(COLOURS, small())
    for kind, cut in ((".rows", 700), (".index", 80), (".index", 10)):
        (path,) = (caches.folder / "cache").glob(f"*{kind}")
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - cut)
        reopened = caches.open(COLOURS, small())
        assert 0 < caches.encoded < len(COLOURS)
        assert all(torch.equal(reopened[i], expected[i]) for i in range(len(COLOURS)))


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"zz"])
def test_a_damaged_index_is_repaired(caches: Caches, damage: bytes) -> None:
    expected = caches.open(COLOURS, small())
    (path,) = (caches.folder / "cache").glob("*.index")
    with path.open("r+b") as file:
        file.seek(4 * 74 + 3)
        file.write(damage)
    reopened = caches.open(COLOURS, small())
    assert caches.encoded == len(COLOURS) - 4
    assert all(torch.equal(reopened[i], expected[i]) for i in range(len(COLOURS)))


def test_a_damaged_row_is_repaired(caches: Caches) -> None:
    expected = caches.open(COLOURS, small())[7].clone()
    (path,) = (caches.folder / "cache").glob("*.rows")
    with path.open("r+b") as file:
        file.seek(7 * 640 + 100)
        file.write(b"damage")
    features = caches.open(COLOURS, small())
    assert caches.encoded == 0
    for encoded in (1, 1):  # encoded once, then repaired on disk
        assert torch.equal(features[7], expected)
        assert caches.encoded == encoded


def test_files_stay_within_the_limit(caches: Caches) -> None:
    caches.open(COLOURS, small())
    with pytest.raises(NoRoomError, match="11 pictures"):
        caches.open(COLOURS, small(), limit=11 * ROW - 1)
    assert not caches.files()  # the files present before are deleted too
    caches.open(COLOURS, small(), torch.bfloat16)
    old = caches.files()
    with pytest.raises(NoRoomError, match="11 pictures"):
        caches.open(COLOURS, small(), limit=11 * ROW - 1)
    assert caches.files() == old  # those of others stay if there is no room in any case
    caches.open(COLOURS, small(), limit=13 * ROW)  # no room for both
    assert len(caches.files()) == 1
    assert caches.files() != old
    caches.open(["purple", "lime"], small(), limit=11 * ROW)  # rows of pictures that are no longer used are deleted
    (path,) = (caches.folder / "cache").glob("*.rows")
    assert path.stat().st_size == 2 * 640


def test_splits_share_the_rows_of_common_pictures(caches: Caches) -> None:
    checkpoint = small()
    train = pictures(caches.folder / "train", checkpoint, COLOURS[:4])
    validation = pictures(caches.folder / "validation", checkpoint, COLOURS[2:6])
    features = FeatureCache(
        FeatureEncoder(checkpoint, torch.float32), [train, validation], caches.folder / "cache", PLENTY
    )
    one, two = features.splits()
    assert (len(one), len(two)) == (4, 4)
    assert torch.equal(one[2], two[0])
    assert torch.equal(two[3], caches.open(COLOURS, checkpoint)[5])
    assert caches.encoded == len(COLOURS) - 6


def fill(folder: Path) -> list[float]:
    """Fill a cache in another process, and return the sum of each row."""
    checkpoint = small()
    examples = [Example(f"{colour}.jpg", ["x"], colour, [], []) for colour in COLOURS]
    source = Pictures(examples, PictureReader(folder / "pictures"), checkpoint)
    features = FeatureCache(FeatureEncoder(checkpoint, torch.float32), [source], folder / "cache", PLENTY)
    return [features[i].sum().item() for i in range(len(COLOURS))]


@pytest.mark.slow
def test_two_processes_can_fill_the_cache_at_once(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", small(), COLOURS)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        one, two = pool.map(fill, [tmp_path, tmp_path])
    assert one == two
    (index,) = (tmp_path / "cache").glob("*.index")
    assert len(index.read_text().splitlines()) == len(set(index.read_text().splitlines())) == len(COLOURS)
