from __future__ import annotations

import contextlib
import io
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2

from pipeline.data.images import PictureError, decode, normalise
from tests.conftest import SHARED

LIMIT = 10_000_000


def encoded(image: Image.Image, kind: str, **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def middle(data: bytes) -> tuple[int, ...]:
    image = decode(data, LIMIT)
    assert image.mode == "RGB"
    pixel = image.getpixel((image.width // 2, image.height // 2))
    assert isinstance(pixel, tuple)
    return pixel


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF", "AVIF"])
def test_every_format_is_read(kind: str) -> None:
    assert np.allclose(middle(encoded(Image.new("RGB", (20, 20), (200, 40, 40)), kind)), (200, 40, 40), atol=6)


def test_every_mode_is_converted_to_rgb() -> None:
    assert middle(encoded(Image.new("L", (8, 8), 100), "PNG")) == (100, 100, 100)
    assert middle(encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG")) == (255, 255, 255)
    assert middle(encoded(Image.new("LA", (8, 8), (0, 0)), "PNG")) == (255, 255, 255)
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert middle(encoded(palette, "PNG")) == (10, 200, 30)
    assert np.allclose(middle(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")), (255, 0, 0), atol=3)
    sixteen = Image.fromarray(np.full((8, 8), 257 * 90, dtype=np.uint16))
    assert middle(encoded(sixteen, "PNG")) == (90, 90, 90)


def swapped_profile() -> bytes:
    """Return an ICC profile that is sRGB with red and blue swapped."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    name = "sRGB".encode("utf-16-be")
    assert name in profile
    swapped = profile.replace(b"rXYZ", b"tmp!").replace(b"bXYZ", b"rXYZ").replace(b"tmp!", b"bXYZ")
    return swapped.replace(name, "BGRs".encode("utf-16-be"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "HEIF", "AVIF"])
def test_colours_are_converted_from_the_profile_to_srgb(kind: str) -> None:
    image = Image.new("RGB", (20, 20), (240, 30, 20))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.allclose(middle(encoded(image, kind, icc_profile=srgb)), (240, 30, 20), atol=8)
    assert np.allclose(middle(encoded(image, kind, icc_profile=swapped_profile())), (20, 30, 240), atol=8)


def test_a_profile_that_cannot_be_used_is_ignored() -> None:
    image = Image.new("RGB", (20, 20), (240, 30, 20))
    for profile in (b"no profile", swapped_profile()[:300]):
        assert middle(encoded(image, "PNG", icc_profile=profile)) == (240, 30, 20)
    clear = Image.new("RGBA", (20, 20), (240, 30, 20, 0))
    assert middle(encoded(clear, "PNG", icc_profile=swapped_profile())) == (255, 255, 255)


def test_the_first_of_several_frames_is_used() -> None:
    red, blue = (Image.new("RGB", (20, 20), colour) for colour in ((250, 10, 10), (10, 10, 250)))
    for kind in ("GIF", "WEBP", "TIFF", "MPO"):  # MPO: a JPEG of several pictures, as phones write it
        animated = encoded(red, kind, save_all=True, append_images=[blue])
        assert np.allclose(middle(animated), (250, 10, 10), atol=8), kind


def test_the_smallest_picture_and_a_transparent_palette_are_read() -> None:
    made = normalise(encoded(Image.new("RGB", (1, 1), "red"), "PNG"), 64, LIMIT)
    assert (made.width, made.height) == (1, 1)
    assert len(made.thumbnail) == 192
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert middle(encoded(palette, "PNG", transparency=1)) == (255, 255, 255)


def test_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    assert decode(encoded(Image.new("RGB", (40, 20)), "JPEG", exif=exif), LIMIT).size == (20, 40)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not_a_picture"),
        (b"GIF89a", "not_a_picture"),
        (b"just words", "not_a_picture"),
        (encoded(Image.new("RGB", (300, 300), "red"), "JPEG")[:700], "damaged"),
        (encoded(Image.effect_noise((90, 90), 50), "PNG")[:2000], "damaged"),
        (encoded(Image.new("RGB", (4000, 4000)), "PNG"), "too_many_pixels"),
        (encoded(Image.new("RGB", (70_000, 10)), "PNG"), "extreme_shape"),
        (encoded(Image.new("RGB", (1, 51)), "PNG"), "extreme_shape"),
    ],
)
def test_an_unusable_picture_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(PictureError) as caught:
        decode(data, LIMIT)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("tag", "value"), [(0x0128, "inches"), (0x0100, "wide"), (0x0103, b"jpeg"), (0x0131, IFDRational(1, 3))]
)
def test_an_exif_tag_of_an_unusual_type_is_not_treated_as_damage(tag: int, value: object) -> None:
    """`exif_transpose` rewrites all tags, and fails on such a tag."""
    halves = Image.new("RGB", (40, 20), "red")
    halves.paste("blue", (0, 0, 20, 20))
    kinds = {str: 2, bytes: 7, IFDRational: 5}
    directory = ImageFileDirectory_v2()
    directory[0x0112] = 6
    directory.tagtype[tag] = kinds[type(value)]
    directory[tag] = value
    exif = b"Exif\0\0II*\0\x08\0\0\0" + directory.tobytes(8)
    image = decode(encoded(halves, "JPEG", exif=exif, quality=100, subsampling=0), LIMIT)
    assert image.size == (20, 40)
    assert np.allclose(image.getpixel((10, 5)), (0, 0, 255), atol=6)  # what was left is above


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_like_pillow_does(orientation: int) -> None:
    image = Image.effect_noise((48, 32), 80).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "PNG", exif=exif)
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert decode(data, LIMIT).tobytes() == turned.convert("RGB").tobytes()


def test_the_users_pixel_limit_applies_instead_of_pillows() -> None:
    data = encoded(Image.new("1", (20_000, 10_000)), "PNG")
    with pytest.raises(PictureError, match="has 20000 x 10000 pixels, more than the 199,999,999 allowed"):
        decode(data, 199_999_999)


def test_damaged_exif_does_not_crash() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    good = encoded(Image.new("RGB", (40, 20), "red"), "JPEG", exif=exif)
    place = good.index(b"Exif")
    rng = np.random.default_rng(0)
    for _ in range(3000):
        data = bytearray(good)
        for at in rng.integers(place, place + 60, 3):
            data[at] = rng.integers(256)
        with contextlib.suppress(PictureError):
            decode(bytes(data), LIMIT)


def test_no_metadata_of_the_original_is_kept() -> None:
    data = encoded(Image.new("RGB", (40, 40), "red"), "JPEG", comment=b"shot at 52.1N 4.3E", icc_profile=b"profile")
    assert b"52.1N" in data
    stored = normalise(data, 256, LIMIT).jpeg
    assert b"52.1N" not in stored
    assert b"profile" not in stored


def test_decoding_at_a_reduced_size_makes_no_visible_difference() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 15, 3), dtype=np.uint8)).resize(
        (1500, 1200), Image.Resampling.BICUBIC
    )
    data = encoded(smooth, "JPEG", quality=95)
    drafted = np.asarray(decode(data, LIMIT, at_least=512).resize((256, 205)), dtype=int)
    full = np.asarray(decode(data, LIMIT).resize((256, 205)), dtype=int)
    assert decode(data, LIMIT, at_least=512).size == (750, 600)
    assert np.abs(drafted - full).max() <= 6


def test_a_picture_is_never_enlarged_and_extreme_shapes_survive() -> None:
    assert (normalise(encoded(Image.new("RGB", (1, 1)), "PNG"), 256, LIMIT).width) == 1
    long = normalise(encoded(Image.new("RGB", (5000, 600)), "PNG"), 256, LIMIT)
    assert (long.width, long.height) == (2133, 256)


def test_a_picture_that_is_saved_again_has_a_similar_fingerprint() -> None:
    rng = np.random.default_rng(1)
    original = Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)).resize(
        (600, 480), Image.Resampling.BICUBIC
    )
    one = normalise(encoded(original, "JPEG", quality=95), 256, LIMIT)
    two = normalise(encoded(original.resize((450, 360)), "JPEG", quality=70), 256, LIMIT)
    assert (one.phash ^ two.phash).bit_count() <= 4
    assert max(abs(a - b) for a, b in zip(one.thumbnail, two.thumbnail, strict=True)) <= 20


@pytest.mark.real
def test_real_photos_that_are_saved_smaller_have_similar_fingerprints() -> None:
    """A hash of a picture that is first reduced by an integer factor misses one in 150 of these."""
    with zipfile.ZipFile(SHARED / "flickr8k_500" / "Images.zip") as archive:
        photos = [archive.read(name) for name in archive.namelist() if name.endswith(".jpg")][:150]
    for data in photos:
        image = decode(data, LIMIT)
        smaller = image.resize((round(image.width * 0.6), round(image.height * 0.6)), Image.Resampling.BICUBIC)
        one, two = normalise(data, 256, LIMIT), normalise(encoded(smaller, "JPEG", quality=80), 256, LIMIT)
        assert (one.phash ^ two.phash).bit_count() <= 4
        assert max(abs(a - b) for a, b in zip(one.thumbnail, two.thumbnail, strict=True)) <= 20
