"""The one place that decodes pictures: a stranger's bytes -> an upright RGB picture."""

from __future__ import annotations

import base64
import hashlib
import io
import warnings
from dataclasses import dataclass, replace

import numpy as np
from PIL import ExifTags, Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# The EXIF orientation -> what turns the picture upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# `decode` refuses by the user's limit, before it decodes; Pillow has one of its own, and warns of every odd EXIF tag.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL\.")

# A thin picture resized to a model's square would be huge before it is cropped.
_MOST_STRETCHED = 50

THUMBNAIL = 8  # cells a side
_JPEG_QUALITY = 95


class PictureError(Exception):
    """A picture can't be used; `reason` is the code that the account uses."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Normalised:
    """A picture as the data set keeps it.

    Attributes:
        jpeg: the bytes to store, without any of the original's metadata (place, device, ...).
        width, height: pixels.
        phash: 64-bit perceptual hash.
        thumbnail: `(THUMBNAIL, THUMBNAIL, 3)` uint8 as bytes.
    """

    jpeg: bytes
    width: int
    height: int
    phash: int
    thumbnail: bytes

    def without_jpeg(self) -> Normalised:
        """The same, but for the bytes: what is worth keeping in memory of many."""
        return replace(self, jpeg=b"")


def decode(data: bytes, max_pixels: int, at_least: int | None = None) -> Image.Image:
    """The picture in RGB, turned upright as its EXIF orientation says; transparent parts become white.

    Args:
        data: a JPEG, PNG, WebP, GIF (first frame), BMP or TIFF file.
        max_pixels: a larger picture is refused by its header, before it is decoded.
        at_least: a JPEG may be decoded at a reduced size, but with no side shorter than this (pixels).

    Raises:
        PictureError: `not_a_picture`, `too_many_pixels`, `extreme_shape`, or `damaged`.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except MemoryError:
        raise
    except Exception:  # Pillow's readers raise many kinds on a stranger's bytes
        raise PictureError("not_a_picture", "is no JPEG, PNG, WebP, GIF, BMP or TIFF picture") from None
    if image.width * image.height > max_pixels:
        raise PictureError(
            "too_many_pixels", f"has {image.width} x {image.height} pixels, more than the {max_pixels:,} allowed"
        )
    if max(image.size) > _MOST_STRETCHED * min(image.size):
        raise PictureError(
            "extreme_shape", f"has {image.width} x {image.height} pixels; one side is over {_MOST_STRETCHED}x the other"
        )
    try:
        if at_least:
            image.draft("RGB", (at_least, at_least))
        image.load()
        turn = _TURNS.get(_orientation(image))
        return _to_rgb(image if turn is None else image.transpose(turn))
    except MemoryError:
        raise
    except Exception:
        raise PictureError("damaged", "is cut off or damaged") from None


def _orientation(image: Image.Image) -> int:
    """As the EXIF says; 1, upright, where that can't be read. `ImageOps.exif_transpose` fails on tags of odd types."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel: `convert` alone would clip instead of scale
        scaled = np.asarray(image, dtype=np.float32) / 257
        image = Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(page, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def identity(data: bytes) -> str:
    """What a picture is known by from its raw bytes on: their SHA-256 (hexadecimal)."""
    return hashlib.sha256(data).hexdigest()


def normalise(data: bytes, size: int, max_pixels: int) -> Normalised:
    """Decode a picture, reduce its shorter side to `size` pixels (never enlarge), and encode it anew.

    Raises:
        PictureError: as `decode`.
    """
    import imagehash

    image = decode(data, max_pixels, at_least=2 * size)
    shorter = min(image.size)
    if shorter > size:
        width, height = (max(1, round(side * size / shorter)) for side in image.size)
        # Halved first where it is twice the size or more (`reducing_gap`): 0.4 of the time, and from a JPEG decoded
        # at a reduced size 40 dB from a full decode, more than the 39 dB of storing it as a JPEG.
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=1.0)
    image.info.clear()  # comments and colour profiles would be written again
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return Normalised(
        jpeg=buffer.getvalue(),
        width=image.width,
        height=image.height,
        phash=int(str(imagehash.phash(image)), 16),
        thumbnail=image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX).tobytes(),
    )


def data_url(data: bytes, side: int, kind: str = "JPEG") -> str:
    """A picture of ours, made to fit a square of `side` pixels, as a data: URL to show in a page."""
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
