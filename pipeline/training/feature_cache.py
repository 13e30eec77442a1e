"""What a frozen image encoder makes of pictures, computed once and kept on disk.

A file of rows, one a picture, and beside it an index of the pictures' hashes and the rows' checksums; both only
ever grow at the end, the index last, so that a crash in between costs one batch and no more. The files' name is a
hash of the encoder's weights, the preprocessing and the number format, so no file serves another encoder.
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

from pipeline.models.git.checkpoint import Checkpoint
from pipeline.models.precision import computing
from pipeline.runtime.progress import progress_bar
from pipeline.training.loader import Pictures, pixel_values

# Every batch has as many pictures, filled up if need be: so a picture's row does not depend, in its last bits,
# on those that happened to be encoded beside it.
_BATCH = 8
# A line of the index: the picture's SHA-256 and the row's CRC-32.
_ENTRY = re.compile(rb"([0-9a-f]{64}) ([0-9a-f]{8})\n")
_LINE = 64 + 1 + 8 + 1  # bytes


class NoRoomError(Exception):
    """The features of these pictures alone need more room than they may take."""


class Features(Dataset[torch.Tensor]):
    """The encoder's output for pictures, `(image_tokens, hidden)` each, memory-mapped from a folder.

    A row whose checksum is wrong is computed again. Two processes may fill the same file.

    Args:
        checkpoint: whose image encoder is used; it must not change afterwards.
        pictures: to encode: those of one or more splits, which are indexed one after the other.
        folder: where the files are kept.
        dtype: that rows are computed and kept in: float32 or bfloat16.
        limit: bytes that the files may have together; to make room, those of other encoders are deleted, the
            longest unused first.

    Raises:
        NoRoomError: these pictures alone need more than `limit`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        pictures: Sequence[Pictures],
        folder: Path,
        dtype: torch.dtype,
        limit: int,
    ) -> None:
        self._checkpoint, self._dtype = checkpoint, dtype
        self._pictures = [(split, i) for split in pictures for i in range(len(split))]
        self._hashes = [split.sha256(i) for split, i in self._pictures]
        self._lengths = [len(split) for split in pictures]
        config = checkpoint.model.config.vision_config
        self._shape = ((config.image_size // config.patch_size) ** 2 + 1, config.hidden_size)
        self._row_bytes = self._shape[0] * self._shape[1] * dtype.itemsize
        name = _key(checkpoint, dtype)
        self._data, self._index = folder / f"{name}.rows", folder / f"{name}.index"
        needed = len(set(self._hashes)) * (self._row_bytes + _LINE)
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f"{name}.lock"):
            self._make_room(limit)
            if needed > limit:
                raise NoRoomError(
                    f"{needed / 1e9:.1f} GB for {len(self._hashes):,} pictures, where {limit / 1e9:.1f} are allowed"
                )
            self._fill()
        self._row_of = self._entries()
        self._rows = np.memmap(self._data, mode="r", dtype=np.uint8).reshape(-1, self._row_bytes)

    def __len__(self) -> int:
        return len(self._hashes)

    def splits(self) -> list[Subset[torch.Tensor]]:
        """The features of each of the splits that were given, in their order."""
        ends = list(accumulate(self._lengths))
        return [Subset(self, range(end - length, end)) for end, length in zip(ends, self._lengths, strict=True)]

    def __getitem__(self, index: int) -> torch.Tensor:
        row, checksum = self._row_of[self._hashes[index]]
        data = self._rows[row].tobytes()
        if zlib.crc32(data) != checksum:
            (data,) = self._encode([index])
            self._row_of[self._hashes[index]] = (row, zlib.crc32(data))
            for path, place, content in (
                (self._data, row * self._row_bytes, data),
                (self._index, row * _LINE, _line(self._hashes[index], data)),
            ):
                with path.open("r+b") as file:
                    file.seek(place)
                    file.write(content)
        return torch.frombuffer(bytearray(data), dtype=self._dtype).view(self._shape)

    def _entries(self) -> dict[str, tuple[int, int]]:
        """The rows up to the first that is not whole: of each picture's hash the number and checksum of its row."""
        lines = self._index.read_bytes() if self._index.exists() else b""
        size = self._data.stat().st_size if self._data.exists() else 0
        entries: dict[str, tuple[int, int]] = {}
        for row in range(min(len(lines) // _LINE, size // self._row_bytes)):
            found = _ENTRY.fullmatch(lines[row * _LINE : (row + 1) * _LINE])
            if not found or (picture := found[1].decode()) in entries:  # damaged: the rest is encoded again
                break
            entries[picture] = (row, int(found[2], 16))
        return entries

    def _make_room(self, limit: int) -> None:
        """Delete what would go beyond the limit: files of other encoders, the longest unused first."""
        mine = len(self._entries().keys() | set(self._hashes)) * (self._row_bytes + _LINE)
        if mine > limit:  # it holds pictures that are no longer in use
            self._data.unlink(missing_ok=True)
            self._index.unlink(missing_ok=True)
            mine = len(set(self._hashes)) * (self._row_bytes + _LINE)
        others = sorted(self._data.parent.glob("*.rows"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in others:
            if path != self._data:
                mine += path.stat().st_size
                if mine > limit:
                    path.unlink()
                    path.with_suffix(".index").unlink(missing_ok=True)

    def _fill(self) -> None:
        """Encode the pictures that have no row yet."""
        there = self._entries()
        first_of = {picture: i for i, picture in reversed(list(enumerate(self._hashes)))}
        missing = sorted(i for picture, i in first_of.items() if picture not in there)
        with self._data.open("ab") as rows, self._index.open("ab") as lines:
            rows.truncate(len(there) * self._row_bytes)
            lines.truncate(len(there) * _LINE)
            starts = range(0, len(missing), _BATCH)
            for start in progress_bar(starts, desc="features", unit=" batches", shown=bool(missing)):
                some = missing[start : start + _BATCH]
                encoded = self._encode(some)
                rows.write(b"".join(encoded))
                rows.flush()
                for i, data in zip(some, encoded, strict=True):
                    lines.write(_line(self._hashes[i], data))
                lines.flush()
        self._data.touch()  # so that it counts as used

    @torch.inference_mode()
    def _encode(self, indices: Sequence[int]) -> list[bytes]:
        """The rows of at most `_BATCH` pictures, as they are stored."""
        filled = [*indices, *[indices[-1]] * (_BATCH - len(indices))]
        model = self._checkpoint.model
        encoder = model.git.image_encoder
        inputs = pixel_values(
            self._checkpoint.image_processor,
            torch.stack([split[i] for split, i in (self._pictures[k] for k in filled)]),
        )
        device = next(encoder.parameters()).device
        training = encoder.training
        encoder.eval()
        with computing(device, self._dtype):
            found = model.encode(inputs.to(device)).to(self._dtype).cpu()
        encoder.train(training)
        return [row.contiguous().view(torch.uint8).numpy().tobytes() for row in found[: len(indices)]]


def _line(picture: str, row: bytes) -> bytes:
    return f"{picture} {zlib.crc32(row):08x}\n".encode()


def _key(checkpoint: Checkpoint, dtype: torch.dtype) -> str:
    """What rows depend on besides the picture."""
    device = next(checkpoint.model.git.image_encoder.parameters()).device
    libraries = [version(name) for name in ("torch", "transformers", "pillow")]
    digest = hashlib.sha256(f"{dtype} {device.type} {libraries}".encode())
    for settings in (checkpoint.image_processor, checkpoint.model.config.vision_config):
        digest.update(json.dumps(settings.to_dict(), sort_keys=True, default=str).encode())
    for name, tensor in sorted(checkpoint.model.git.image_encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
