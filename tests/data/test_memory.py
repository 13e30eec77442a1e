"""Memory of decoding: the bound that is reserved holds for every format and mode, and ingest stays in its budget."""

from __future__ import annotations

import csv
import io
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import torch
from PIL import Image

from pipeline.data import images
from pipeline.data.images import OpenedPicture, PictureError, decode, normalise
from pipeline.runtime.atomic_files import read_json
from pipeline.runtime.torch_memory import peak_memory
from tests.conftest import ROOT, environment, run, set_params
from tests.data.test_images import swapped_profile

SIDE = 2500
SLACK = 12e6  # bytes; bands, buffers, and the allocator's rounding
CPU = torch.device("cpu")


def encoded(image: Image.Image, kind: str, **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def plain(mode: str, kind: str, side: int = SIDE, **how: object) -> bytes:
    return encoded(Image.new(mode, (side, side)), kind, **how)


def turned(mode: str, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return plain(mode, kind, exif=exif)


def ten_bits(mode: str) -> bytes:
    """A HEIC whose planes take 2 bytes per pixel."""
    picture = pillow_heif.from_bytes(f"{mode};16", (SIDE, SIDE), bytes(2 * len(mode) * SIDE**2))
    buffer = io.BytesIO()
    picture.save(buffer, chroma=444)
    return buffer.getvalue()


CASES: dict[str, Callable[[], bytes]] = {
    "PNG RGB": lambda: plain("RGB", "PNG"),
    "PNG RGBA": lambda: plain("RGBA", "PNG"),
    "PNG RGBA turned": lambda: turned("RGBA", "PNG"),
    "PNG LA": lambda: plain("LA", "PNG"),
    "PNG palette": lambda: plain("P", "PNG", transparency=0),
    "PNG RGB with a transparent colour": lambda: plain("RGB", "PNG", transparency=(0, 0, 0)),
    "PNG 16 bits": lambda: encoded(Image.fromarray(np.zeros((SIDE, SIDE), np.uint16)), "PNG"),
    "PNG 1 bit": lambda: plain("1", "PNG"),
    "WebP": lambda: plain("RGB", "WEBP", method=0),
    "WebP RGBA": lambda: plain("RGBA", "WEBP", method=0),
    "WebP turned": lambda: turned("RGBA", "WEBP"),
    "GIF": lambda: plain("P", "GIF"),
    "BMP": lambda: plain("RGB", "BMP"),
    "TIFF": lambda: plain("RGBA", "TIFF", compression="tiff_lzw"),
    "TIFF in one strip": lambda: plain("RGB", "TIFF", compression="tiff_adobe_deflate", strip_size=10**9),
    "TIFF of floats": lambda: plain("F", "TIFF", compression="tiff_lzw", strip_size=10**9),
    "PNG RGBA with a profile": lambda: plain("RGBA", "PNG", icc_profile=swapped_profile()),
    "WebP RGBA with a profile": lambda: plain("RGBA", "WEBP", method=0, icc_profile=swapped_profile()),
    "JPEG with a profile": lambda: plain("RGB", "JPEG", icc_profile=swapped_profile()),
    "HEIF": lambda: plain("RGB", "HEIF"),
    "HEIF turned": lambda: turned("RGBA", "HEIF"),
    "HEIF 10 bits": lambda: ten_bits("RGB"),
    "HEIF RGBA 10 bits": lambda: ten_bits("RGBA"),
    "AVIF": lambda: plain("RGB", "AVIF", speed=10, subsampling="4:4:4"),
    "AVIF turned": lambda: turned("RGBA", "AVIF"),
    "JPEG": lambda: plain("RGB", "JPEG"),
    "JPEG turned": lambda: turned("RGB", "JPEG"),
    "JPEG CMYK, progressive": lambda: plain("CMYK", "JPEG", progressive=True),
    "JPEG progressive": lambda: plain("RGB", "JPEG", progressive=True, subsampling=0),
}


@pytest.fixture
def warm() -> None:
    """Decode once, because that imports libraries."""
    normalise(plain("RGB", "PNG", 300), 256, 10**9)


@pytest.mark.usefixtures("warm")
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is known on Linux only")
@pytest.mark.parametrize("name", CASES)
def test_decoding_takes_no_more_than_its_bound(name: str) -> None:
    data = CASES[name]()
    for at_least in (None, 512):
        bound = OpenedPicture(data, 10**9, at_least).memory
        assert bound < (31 if name.startswith("HEIF") else 25 if name.startswith("AVIF") else 20) * SIDE**2
        with peak_memory(CPU) as needed:
            if at_least:
                normalise(data, at_least // 2, 10**9)
            else:
                decode(data, 10**9)
        assert needed() <= bound + SLACK, at_least


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "PNG"), ("RGBA", "PNG"), ("L", "PNG"), ("CMYK", "TIFF")])
def test_colours_are_converted_in_bands_as_at_once(mode: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (67, 41, 4), dtype=np.uint8))
    image = noise.convert("RGB").convert(mode) if mode == "CMYK" else noise.convert(mode)
    data = encoded(image, kind, icc_profile=swapped_profile())
    at_once = decode(data, 10**9)
    assert mode in ("L", "CMYK") or at_once.tobytes() != decode(encoded(image, kind), 10**9).tobytes()
    monkeypatch.setattr(images, "_BAND_PIXELS", 100)
    assert decode(data, 10**9).tobytes() == at_once.tobytes()


MODES = ["RGB", "RGBA", "L", "LA", "CMYK", "1", "P", "I;16", "F"]


@pytest.mark.parametrize("mode", MODES)
def test_conversion_in_bands_equals_conversion_at_once(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (67, 41, 4), dtype=np.uint8))
    if mode == "I;16":
        data = encoded(Image.fromarray(rng.integers(0, 2**16, (67, 41), dtype=np.uint16)), "PNG")
    elif mode == "P":
        data = encoded(noise.convert("RGB").quantize(100), "PNG", transparency=7)
    else:
        image = noise.convert("RGB").convert(mode) if mode in ("CMYK", "F", "1") else noise.convert(mode)
        data = encoded(image, "TIFF" if mode in ("CMYK", "F") else "PNG")
    at_once = decode(data, 10**9)
    monkeypatch.setattr(images, "_BAND_PIXELS", 100)
    assert decode(data, 10**9).tobytes() == at_once.tobytes()
    assert at_once.size == (41, 67)


def test_a_tile_larger_than_the_picture_counts(tmp_path: Path) -> None:
    """libtiff allocates whole tiles: a picture of 16 pixels may have a tile of a billion."""
    data = bytearray(tiled_tiff(16, 16))
    assert decode(bytes(data), 10**6).size == (16, 16)
    with pytest.raises(PictureError) as caught:
        decode(bytes(tiled_tiff(16, 32_768)), 10**6)
    assert caught.value.reason == "too_many_pixels"


def tiled_tiff(side: int, tile: int) -> bytes:
    """A grey TIFF with one deflated tile."""
    pixels = zlib.compress(bytes(tile * tile if tile <= 4096 else 4096 * 4096), 9)
    entries = [
        *((256, side), (257, side), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile)),
        *((324, 200), (325, len(pixels))),
    ]
    directory = struct.pack("<H", len(entries))
    for tag, value in entries:
        directory += struct.pack("<HHII", tag, 4, 1, value)
    head = b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 0)
    return head.ljust(200, b"\0") + pixels


TOGETHER = """
import threading, torch
from pipeline.data.images import OpenedPicture, normalise
from pipeline.runtime.memory_budget import MemoryBudget, return_large_blocks
from pipeline.runtime.torch_memory import peak_memory
from tests.data.test_memory import plain

return_large_blocks()
data = plain("RGBA", "PNG")
normalise(plain("RGB", "PNG", 300), 256, 10**9)
budget = MemoryBudget(OpenedPicture(data, 10**9).memory)
for _ in range(2):
    with peak_memory(torch.device("cpu")) as needed:
        threads = [threading.Thread(target=normalise, args=(data, 256, 10**9, budget)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(needed() - budget.total)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is known on Linux only")
def test_pictures_that_do_not_fit_together_are_decoded_one_after_the_other() -> None:
    """In a process of its own, because malloc keeps the arenas of the threads of other tests."""
    done = run(ROOT, sys.executable, "-c", TOGETHER)
    assert done.returncode == 0, done.stderr
    assert [int(line) <= SLACK for line in done.stdout.splitlines()] == [True, True], done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is known on Linux only")
def test_a_thousand_hostile_pictures_stay_within_the_memory_budget(workspace: Path) -> None:
    """25 million pixels each, in files of some kilobytes, decoded by eight threads."""
    pictures, side, gigabytes = 1000, 5000, 0.8
    folder = workspace / "data/raw/hostile"
    folder.mkdir(parents=True)
    kinds = [("RGBA", "PNG"), ("LA", "PNG"), ("RGB", "WEBP"), ("RGBA", "WEBP"), ("RGBA", "TIFF"), ("CMYK", "JPEG")]
    how = {"PNG": {"compress_level": 9}, "WEBP": {"method": 0}, "TIFF": {"compression": "tiff_adobe_deflate"}}
    made = [(kind, plain(mode, kind, side, **how.get(kind, {"progressive": True}))) for mode, kind in kinds]
    with zipfile.ZipFile(folder / "images.zip", "w") as archive, (folder / "captions.csv").open("w") as table:
        rows = csv.writer(table)
        rows.writerow(["image", "caption"])
        for number in range(pictures):
            kind, data = made[number % len(made)]
            name = f"{number}.{kind.lower()}".replace("tiff", "tif")
            archive.writestr(name, data + number.to_bytes(4, "little"))  # no two files have the same bytes
            rows.writerow([name, f"number {number}"])
    set_params(workspace, {"ingest.sources": ["hostile"], "runtime.memory_gb": gigabytes, "runtime.decode_threads": 8})
    idle = peak_of(workspace, "import pipeline.ingest, imagehash")
    stage = "runpy.run_module('pipeline.ingest', run_name='__main__')"
    peak = peak_of(workspace, f"import runpy, sys; sys.argv[1:] = ['hostile']; {stage}")
    report = read_json(workspace / "reports/ingest/hostile.json")
    print(f"{pictures:,} pictures: peak {peak / 1e9:.2f} GB, of which {idle / 1e9:.2f} GB without pictures")
    assert report["files"]["pictures_kept"] == pictures
    assert peak - idle < gigabytes * 1e9


def peak_of(workspace: Path, code: str) -> int:
    """Return the peak resident size of a Python process, in bytes."""
    last = "import atexit; atexit.register(lambda: print(*open('/proc/self/status').readlines()))"
    done = subprocess.run(
        [sys.executable, "-c", f"{last}; {code}"],
        cwd=workspace,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "VmHWM:" in line]
    return 1024 * int(line.split()[1])
