"""Features of pictures from a frozen image encoder: computed once and kept on disk, or computed each time.

The cache is a file of rows, one per picture, beside an index of the pictures' hashes and the rows' checksums. Both only
grow at the end, the index last, so a crash loses one batch at most. Their name is a hash of the encoder's weights,
the preprocessing and the dtype, so no file serves another encoder. Features that do not fit into the cache have the
same bits: they are computed in the same fixed-size batches and rounded to the same dtype.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path

import filelock
import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from pipeline.models.base import Checkpoint
from pipeline.models.inputs import normalize
from pipeline.models.precision import autocast
from pipeline.runtime.progress import progress_bar
from pipeline.training.loader import Pictures

# Every batch has this many pictures, padded if necessary, so that the last bits of a picture's features do not depend
# on the other pictures in its batch.
ENCODE_BATCH = 8
# A line of the index: the picture's SHA-256 and the row's CRC-32.
_ENTRY = re.compile(rb"([0-9a-f]{64}) ([0-9a-f]{8})\n")
_LINE = 64 + 1 + 8 + 1  # bytes


class NoRoomError(Exception):
    """The features of these pictures alone exceed the cache's limit."""


class FeatureEncoder:
    """Computes rows: a picture's features as bytes, the same each time.

    Args:
        checkpoint: its image encoder is frozen here.
        dtype: dtype of matrix products and of the rows.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        self._checkpoint, self._dtype = checkpoint, dtype
        # `torch.matmul` picks its kernel by `requires_grad` too, so a row computed before the encoder is frozen could
        # differ in its last bits from one computed after (measured: 2.4e-7 in a linear layer on a transposed input).
        checkpoint.model.image_encoder.requires_grad_(False)
        self._shape = checkpoint.model.features_shape
        self.row_bytes = self._shape[0] * self._shape[1] * dtype.itemsize

    @torch.inference_mode()
    def rows(self, pictures: Sequence[torch.Tensor]) -> list[bytes]:
        """Return the rows of at most `ENCODE_BATCH` pictures, `(3, height, width)` uint8 each."""
        padded = torch.stack([*pictures, *[pictures[-1]] * (ENCODE_BATCH - len(pictures))])
        model = self._checkpoint.model
        encoder = model.image_encoder
        device = next(encoder.parameters()).device
        was_training = encoder.training
        encoder.eval()
        with autocast(device, self._dtype):
            pixels = normalize(self._checkpoint.image_processor, padded)
            features = model.encode(pixels.to(device)).to(self._dtype).cpu()
        encoder.train(was_training)
        return [row.contiguous().view(torch.uint8).numpy().tobytes() for row in features[: len(pictures)]]

    def features(self, row: bytes) -> torch.Tensor:
        """Return a row as a tensor, `(image tokens, width)`."""
        return torch.frombuffer(bytearray(row), dtype=self._dtype).view(self._shape)

    def key(self) -> str:
        """Return a hash of everything that a row depends on besides the picture."""
        model = self._checkpoint.model
        device = next(model.image_encoder.parameters()).device
        libraries = [version(name) for name in ("torch", "transformers", "pillow")]
        digest = hashlib.sha256(f"{self._dtype} {device.type} {libraries}".encode())
        for settings in (self._checkpoint.image_processor.to_dict(), model.image_encoder_settings):
            digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        for name, tensor in sorted(model.image_encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:32]


class UncachedFeatures(Dataset[torch.Tensor]):
    """The features of a split's pictures, `(image tokens, width)` each, computed on every access."""

    reads_ahead = False  # see `pipeline.training.loader.batches`

    def __init__(self, encoder: FeatureEncoder, pictures: Pictures) -> None:
        self._encoder, self._pictures = encoder, pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[torch.Tensor]:
        """Return the features of several pictures."""
        features: list[torch.Tensor] = []
        for start in range(0, len(indices), ENCODE_BATCH):
            pictures = [self._pictures[index] for index in indices[start : start + ENCODE_BATCH]]
            features += map(self._encoder.features, self._encoder.rows(pictures))
        return features


class FeatureCache(Dataset[torch.Tensor]):
    """The features of pictures, `(image tokens, width)` each, memory-mapped from a folder.

    A row with a wrong checksum is computed again. Two processes may fill the same file.

    Args:
        encoder: computes the rows.
        pictures: the pictures of one or more splits, indexed one split after the other.
        folder: the location of the files.
        limit: maximum size of all files together, in bytes; to make room, files of other encoders are deleted, least
            recently used first.

    Raises:
        NoRoomError: these pictures alone need more than `limit`.
    """

    def __init__(self, encoder: FeatureEncoder, pictures: Sequence[Pictures], folder: Path, limit: int) -> None:
        self._encoder = encoder
        self._pictures = [(split, i) for split in pictures for i in range(len(split))]
        self._hashes = [split.sha256(i) for split, i in self._pictures]
        self._lengths = [len(split) for split in pictures]
        name = encoder.key()
        self._data, self._index = folder / f"{name}.rows", folder / f"{name}.index"
        needed = len(set(self._hashes)) * (encoder.row_bytes + _LINE)
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f"{name}.lock"):
            self._make_room(limit)
            if needed > limit:
                raise NoRoomError(
                    f"{needed / 1e9:.1f} GB for {len(self._hashes):,} pictures, but {limit / 1e9:.1f} GB are allowed"
                )
            self._fill()
        self._row_of = self._entries()
        self._rows = np.memmap(self._data, mode="r", dtype=np.uint8).reshape(-1, encoder.row_bytes)

    def __len__(self) -> int:
        return len(self._hashes)

    def splits(self) -> list[Subset[torch.Tensor]]:
        """Return the features of each split, in the order of `pictures`."""
        ends = list(accumulate(self._lengths))
        return [Subset(self, range(end - length, end)) for end, length in zip(ends, self._lengths, strict=True)]

    def __getitem__(self, index: int) -> torch.Tensor:
        row, checksum = self._row_of[self._hashes[index]]
        data = self._rows[row].tobytes()
        if zlib.crc32(data) != checksum:
            (data,) = self._encode([index])
            self._row_of[self._hashes[index]] = (row, zlib.crc32(data))
            for path, place, content in (
                (self._data, row * self._encoder.row_bytes, data),
                (self._index, row * _LINE, _line(self._hashes[index], data)),
            ):
                with path.open("r+b") as file:
                    file.seek(place)
                    file.write(content)
        return self._encoder.features(data)

    def __getitems__(self, indices: Sequence[int]) -> list[torch.Tensor]:
        """Return the features of several pictures."""
        return [self[index] for index in indices]

    def _entries(self) -> dict[str, tuple[int, int]]:
        """Return the number and checksum of each picture's row, up to the first incomplete one."""
        lines = self._index.read_bytes() if self._index.exists() else b""
        size = self._data.stat().st_size if self._data.exists() else 0
        entries: dict[str, tuple[int, int]] = {}
        for row in range(min(len(lines) // _LINE, size // self._encoder.row_bytes)):
            match = _ENTRY.fullmatch(lines[row * _LINE : (row + 1) * _LINE])
            if not match or (picture := match[1].decode()) in entries:  # damaged: the rest is encoded again
                break
            entries[picture] = (row, int(match[2], 16))
        return entries

    def _make_room(self, limit: int) -> None:
        """Delete files of other encoders, least recently used first, until all files fit into the limit."""
        mine = len(self._entries().keys() | set(self._hashes)) * (self._encoder.row_bytes + _LINE)
        if mine > limit:  # it holds rows of pictures that are no longer in use
            self._data.unlink(missing_ok=True)
            self._index.unlink(missing_ok=True)
            mine = len(set(self._hashes)) * (self._encoder.row_bytes + _LINE)
            if mine > limit:  # they will not be cached, so others need not give way
                mine = 0
        others = sorted(self._data.parent.glob("*.rows"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in others:
            if path != self._data:
                mine += path.stat().st_size
                if mine > limit:
                    path.unlink()
                    path.with_suffix(".index").unlink(missing_ok=True)

    def _fill(self) -> None:
        """Encode the pictures that have no row yet."""
        present = self._entries()
        first_of = {picture: i for i, picture in reversed(list(enumerate(self._hashes)))}
        missing = sorted(i for picture, i in first_of.items() if picture not in present)
        with self._data.open("ab") as rows, self._index.open("ab") as lines:
            rows.truncate(len(present) * self._encoder.row_bytes)
            lines.truncate(len(present) * _LINE)
            starts = range(0, len(missing), ENCODE_BATCH)
            for start in progress_bar(starts, desc="features", unit=" batches", shown=bool(missing)):
                batch = missing[start : start + ENCODE_BATCH]
                encoded = self._encode(batch)
                rows.write(b"".join(encoded))
                rows.flush()
                for i, data in zip(batch, encoded, strict=True):
                    lines.write(_line(self._hashes[i], data))
                lines.flush()
        self._data.touch()  # marks it as recently used

    def _encode(self, indices: Sequence[int]) -> list[bytes]:
        """Return the rows of at most `ENCODE_BATCH` pictures."""
        return self._encoder.rows([split[i] for split, i in (self._pictures[k] for k in indices)])


def _line(picture: str, row: bytes) -> bytes:
    return f"{picture} {zlib.crc32(row):08x}\n".encode()
