"""Decode untrusted picture files to upright RGB, and normalise them for the data set.

No other module decodes pictures from outside. This module imports nothing else of `pipeline.data`, so that changes
there do not make training stale. `OpenedPicture.memory` says how much memory a picture takes before it is decoded.
"""

from __future__ import annotations

import base64
import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pillow_heif
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin

from pipeline.runtime.memory_budget import MemoryBudget

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif"}
)
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF", "AVIF")

pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)

# EXIF orientation -> the operation that turns the picture upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# `decode` applies the user's limit instead of Pillow's. Pillow also warns about every unusual EXIF tag.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL\.")

# A very thin picture, resized so that its shorter side fits a model, would be huge before it is cropped.
_MAX_ASPECT = 50

# Upper bounds of the memory that decoding takes, measured per format and mode (tests/data/test_memory.py).
_BYTES_PER_PIXEL = 10  # Pillow's 4, 4 more for a copy in RGB or turned upright, and 2 for a reduced copy
# libwebp's canvas and two copies; the planes of libheif and libavif, with up to 16 bits per channel. libheif's threads
# hold more of them on a busy machine.
_EXTRA_BYTES_PER_PIXEL = {"WEBP": 8, "HEIF": 20, "AVIF": 14}
_TIFF_BYTES_PER_PIXEL = 8  # libtiff's strip or tile, at 4 channels of 16 bits
_BAND_PIXELS = 2**20

THUMBNAIL = 8  # cells per side
_JPEG_QUALITY = 95

_PROFILED = {"RGB": "RGB", "RGBA": "RGBA", "CMYK": "RGB", "L": "RGB"}  # mode -> mode after the conversion to sRGB
_MAX_PROFILE_BYTES = 2**22


class PictureError(Exception):
    """A picture cannot be used; `reason` is a code of `audit.FILE_REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Normalised:
    """A picture as stored in the data set.

    Attributes:
        jpeg: the bytes to store, without the original's metadata (location, device, ...).
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
        """Return a copy without the JPEG bytes, which are too large to keep in memory for many pictures."""
        return replace(self, jpeg=b"")


class OpenedPicture:
    """A picture of which only the header has been read.

    Attributes:
        memory: an upper bound of the bytes that `decode` takes, its result included. Reserve them in a `MemoryBudget`.
    """

    def __init__(self, data: bytes, max_pixels: int, at_least: int | None = None) -> None:
        """Read the header.

        Args:
            data: a JPEG, PNG, WebP, GIF (first frame), BMP, TIFF, HEIC or AVIF file.
            max_pixels: larger pictures are rejected.
            at_least: a JPEG may be decoded at a reduced size, with no side shorter than this (pixels).

        Raises:
            PictureError: `not_a_picture`, `too_many_pixels`, `extreme_shape`, or `damaged`.
        """
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except MemoryError:
            raise
        except Exception:  # Pillow raises many types of exceptions on damaged files
            raise PictureError(
                "not_a_picture", "is not a JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC or AVIF picture"
            ) from None
        _check_size(image.width, image.height, max_pixels)
        if max(image.size) > _MAX_ASPECT * min(image.size):
            raise PictureError(
                "extreme_shape",
                f"has {image.width} x {image.height} pixels; one side is over {_MAX_ASPECT}x the other",
            )
        try:
            tile = _tile_size(image)
            _check_size(*tile, max_pixels)
            pixels, bands = image.width * image.height, len(image.getbands())
            if at_least:
                image.draft("RGB", (at_least, at_least))
            decoded = image.width * image.height
        except (MemoryError, PictureError):
            raise
        except Exception:
            raise PictureError("damaged", "is cut off or damaged") from None
        self._image = image
        self.memory = _BYTES_PER_PIXEL * decoded + _EXTRA_BYTES_PER_PIXEL.get(image.format or "", 0) * pixels
        if image.format == "JPEG":
            self.memory += 2 * bands * pixels  # the coefficients of a progressive JPEG, whatever size is decoded
        if image.format == "TIFF":
            self.memory += _TIFF_BYTES_PER_PIXEL * tile[0] * tile[1]

    def decode(self) -> Image.Image:
        """Return the picture in sRGB, turned upright by its EXIF orientation, on white if it is transparent.

        Raises:
            PictureError: `damaged`.
        """
        image: Image.Image = self._image
        try:
            image.load()
            turn = _TURNS.get(_orientation(image))
            if turn is not None:
                image = image.transpose(turn)
                self._image.close()
            return _to_rgb(image)
        except MemoryError:
            raise
        except Exception:
            raise PictureError("damaged", "is cut off or damaged") from None

    def close(self) -> None:
        """Free the decoded picture, which `decode` may have returned itself."""
        self._image.close()


@contextmanager
def opened(
    data: bytes, max_pixels: int, budget: MemoryBudget | None = None, at_least: int | None = None
) -> Iterator[OpenedPicture]:
    """Open a picture, reserve the memory that decoding it takes in `budget`, and free it after the block.

    Decode it within the block, and keep no large picture beyond it. For the other arguments and the errors see
    `OpenedPicture`.
    """
    picture = OpenedPicture(data, max_pixels, at_least)
    with budget.reserve(picture.memory) if budget else nullcontext():
        try:
            yield picture
        finally:
            picture.close()


def decode(data: bytes, max_pixels: int, at_least: int | None = None) -> Image.Image:
    """Return the picture as `OpenedPicture.decode` does; for the arguments and errors see there."""
    return OpenedPicture(data, max_pixels, at_least).decode()


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise PictureError("too_many_pixels", f"has {width} x {height} pixels, more than the {max_pixels:,} allowed")


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height of what is decoded at once: a TIFF's tile may be larger than the picture."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.size
    tags = image.tag_v2
    sides = (tags.get(TiffImagePlugin.TILEWIDTH, 0), tags.get(TiffImagePlugin.TILELENGTH, 0))
    return max(image.width, int(sides[0])), max(image.height, int(sides[1]))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 (upright) if it cannot be read.

    `ImageOps.exif_transpose` is not used because it fails on tags of unusual types.
    """
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return the picture in sRGB, converted in bands: all at once would take up to five more copies of a large one."""
    transform = _transform_of(image)
    if image.mode == "RGB" and not image.has_transparency_data and transform is None:
        return image
    result = Image.new("RGB", image.size)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(_band_to_rgb(band, transform), (0, top))
    return result


def _band_to_rgb(image: Image.Image, transform: ImageCms.ImageCmsTransform | None) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits per pixel: `convert` would clip instead of scale
        scaled = np.asarray(image, dtype=np.float32) / 257
        image = Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
    if transform is not None:
        image = transform.apply(image)
    if image.mode == "RGBA":
        page = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(page, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _transform_of(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of a picture's colours to sRGB; None if they need none.

    A profile that cannot be used (damaged, or of another kind of picture) is ignored, as browsers do.
    """
    profile = image.info.get("icc_profile")
    mode = "RGBA" if image.has_transparency_data else image.mode  # see `_band_to_rgb`
    if not isinstance(profile, bytes) or not 0 < len(profile) <= _MAX_PROFILE_BYTES or mode not in _PROFILED:
        return None
    try:
        return _transform_to_srgb(profile, mode)
    except MemoryError:
        raise
    except Exception:
        return None


@lru_cache(maxsize=32)
def _transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform to sRGB for pictures of a mode; None if the profile is sRGB itself."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if "srgb" in ImageCms.getProfileDescription(opened).lower():
        return None
    target = ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(opened, target, mode, _PROFILED[mode], ImageCms.Intent.RELATIVE_COLORIMETRIC)


def identity(data: bytes) -> str:
    """Return the identity of a picture: the SHA-256 (hexadecimal) of its raw bytes."""
    return hashlib.sha256(data).hexdigest()


def normalise(data: bytes, size: int, max_pixels: int, budget: MemoryBudget | None = None) -> Normalised:
    """Decode a picture, reduce its shorter side to `size` pixels (never enlarge it), and encode it as JPEG.

    Args:
        data: the file.
        size: pixels.
        max_pixels: larger pictures are rejected by their header.
        budget: the memory of the decoded picture is reserved in it.

    Raises:
        PictureError: see `OpenedPicture`.
    """
    with opened(data, max_pixels, budget, at_least=2 * size) as picture:
        return _normalise(picture, size)


def _normalise(picture: OpenedPicture, size: int) -> Normalised:
    import imagehash  # takes 0.2 s (SciPy), and only ingest needs it

    image = picture.decode()
    shorter = min(image.size)
    if shorter > size:
        width, height = (max(1, round(side * size / shorter)) for side in image.size)
        # `reducing_gap` halves the picture first if it is at least twice the size: 0.4 of the time, and 40 dB PSNR
        # against a full decode, which is better than the 39 dB that storing it as JPEG costs.
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=1.0)
    image.info.clear()  # otherwise comments and colour profiles would be stored
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
    """Return a normalised picture, reduced to fit a square of `side` pixels, as a data: URL for a web page."""
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
