from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.errors import ConfigError
from pipeline.models import neighbours
from pipeline.models.neighbours import Neighbours, read_neighbours
from pipeline.runtime.atomic_files import sha256_of


def some(pictures: int = 50) -> Neighbours:
    features = np.random.default_rng(1).normal(size=(pictures, 8))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    captions = [[f"caption {i}", "a\u2028b"] for i in range(pictures)]
    return Neighbours(
        features.astype(np.float16), captions, [f"{i:064x}" for i in range(pictures)], {"model_sha256": "m"}
    )


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_nearest_pictures_are_exact_for_every_chunk_size(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(neighbours, "_CHUNK", chunk)
    index = some()
    similar = index.features.astype(np.float32) @ index.features.astype(np.float32).T
    assert index.nearest(index.features.astype(np.float32), 5) == np.argsort(-similar, axis=1)[:, :5].tolist()


def test_the_memory_of_a_search_does_not_grow_with_the_number_of_pictures() -> None:
    index = some(4_000)
    wanted = index.features.astype(np.float32)
    tracemalloc.start()
    try:
        found = index.nearest(wanted, 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == [[i] for i in range(len(wanted))]
    assert peak < 8 * 2**20, "all similarities at once take 64 MB"


def test_equal_pictures_keep_their_order_and_a_small_index_returns_all() -> None:
    index = some(3)
    twice = Neighbours(np.concatenate([index.features] * 2), index.captions, index.sha256s, {})
    (found,) = twice.nearest(index.features[1:2].astype(np.float32), 99)
    assert found[:2] == [1, 4]
    assert sorted(found) == list(range(6))


def test_the_captions_of_more_similar_pictures_count_more() -> None:
    features = np.array([[1, 0], [0.6, 0.8], [0.8, 0.6]], dtype=np.float16)
    index = Neighbours(features, [["a", "b"], ["c"], ["d"]], ["1", "2", "3"], {})
    ((captions, weights),) = index.captions_near(np.array([[1, 0]], dtype=np.float32), 3)
    assert captions == ["a", "b", "d", "c"]
    similar = np.array([1, 0.8, 0.6])
    falling = np.exp((similar - 1) / similar.std())
    assert weights == pytest.approx(np.array([falling[0] / 2, falling[0] / 2, *falling[1:]]) / falling.sum(), abs=1e-3)
    ((_, scaled),) = Neighbours(features, index.captions, index.sha256s, {}).captions_near(
        np.array([[0.5, 0]], dtype=np.float32), 3
    )
    assert scaled == pytest.approx(weights, abs=1e-3), "the scale of similarities does not matter"


def test_equally_similar_pictures_count_the_same_and_an_empty_index_has_no_captions() -> None:
    index = Neighbours(np.ones((2, 1), dtype=np.float16), [["a"], ["b", "c"]], ["1", "2"], {})
    ((captions, weights),) = index.captions_near(np.ones((1, 1), dtype=np.float32), 9)
    assert (captions, weights.tolist()) == (["a", "b", "c"], [0.5, 0.25, 0.25])
    ((captions, weights),) = index.without(["1", "2"]).captions_near(np.ones((1, 1), dtype=np.float32), 9)
    assert (captions, weights.tolist()) == ([], [])


def test_an_index_is_read_as_it_was_written_and_equal_ones_have_equal_bytes(tmp_path: Path) -> None:
    index = some()
    for name in ("one", "two"):
        index.write(tmp_path / name)
    assert sha256_of(tmp_path / "one") == sha256_of(tmp_path / "two")
    modes = {(tmp_path / "one" / name).stat().st_mode for name in ("features.safetensors", "captions.jsonl")}
    assert len(modes) == 1
    read = read_neighbours(tmp_path / "one", "m")
    assert (read.features == index.features).all()
    assert (read.captions, read.sha256s, read.facts) == (index.captions, index.sha256s, index.facts)


def test_pictures_that_must_not_be_used_are_left_out() -> None:
    index = some(4)
    assert index.without(["f" * 64]) is index
    less = index.without([index.sha256s[2]])
    assert less.sha256s == [index.sha256s[i] for i in (0, 1, 3)]
    assert less.captions == [index.captions[i] for i in (0, 1, 3)]
    assert (less.features == index.features[[0, 1, 3]]).all()


@pytest.mark.parametrize("name", ["features.safetensors", "captions.jsonl", "neighbours.json"])
def test_a_damaged_index_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    some().write(tmp_path / "index")
    file = tmp_path / "index" / name
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=r"index: is damaged: .* run `dvc repro`"):
        read_neighbours(tmp_path / "index", "m")


def test_a_missing_index_is_told_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none: this model has no index .* set evaluate\.decoding\.method to beam"):
        read_neighbours(tmp_path / "none", "m")
