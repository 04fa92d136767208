"""Image files of every kind: white is white, black is black, or one line says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from vlmexport.errors import UsageError
from vlmexport.processing.images import read_image

RAMP = np.arange(12, dtype=np.float64).reshape(3, 4) / 11  # black to white
GREY = np.rint(RAMP * 255)
PHOTOMETRIC, SUBFILE, BITS = 262, 254, 258


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def assert_ramp(path: Path, within: int = 0) -> None:
    image = read_image(path)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image, np.float64) - GREY[..., None]).max() <= within


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr"])
def test_every_mode_without_transparency_is_what_pillow_makes_of_it(mode: str, tmp_path: Path) -> None:
    name, image = tmp_path / "image.tiff", picture(20, 10).convert(mode)
    image.save(name)
    np.testing.assert_array_equal(read_image(name), image.convert("RGB"))


@pytest.mark.parametrize(
    ("kind", "file"),
    [("<u2", "grey.png"), ("<u2", "grey.tiff"), (">u2", "grey.tiff"), ("<u2", "grey.pgm"), ("<u2", "grey.jp2")],
)
def test_16_bits_are_scaled(kind: str, file: str, tmp_path: Path) -> None:
    Image.fromarray(np.rint(RAMP * 65535).astype(kind)).save(tmp_path / file)
    assert_ramp(tmp_path / file)


def test_16_bits_stand_upright_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    turned = np.rint(RAMP * 65535).astype(np.uint16)[::-1, ::-1]
    Image.fromarray(turned).save(tmp_path / "grey.png", exif=exif)
    assert_ramp(tmp_path / "grey.png")


def test_a_negative_of_16_bits(tmp_path: Path) -> None:
    image = Image.fromarray(np.rint((1 - RAMP) * 65535).astype("<u2"))
    image.save(tmp_path / "grey.tiff", tiffinfo={PHOTOMETRIC: 0})
    content = (tmp_path / "grey.tiff").read_bytes()
    one, zero = (b"\x06\x01\x03\x00\x01\x00\x00\x00" + white for white in (b"\x01", b"\x00"))
    (tmp_path / "grey.tiff").write_bytes(content.replace(one, zero))
    with Image.open(tmp_path / "grey.tiff") as opened:
        assert opened.tag_v2[PHOTOMETRIC] == 0  # type: ignore[attr-defined]
    assert_ramp(tmp_path / "grey.tiff")


def test_12_bits_have_their_own_white(tmp_path: Path) -> None:
    """Two values in three bytes; Pillow reads such a TIFF and does not scale it."""
    values = np.rint(RAMP * 4095).astype(int)
    packed = bytearray()
    for a, b in values.reshape(-1, 2).tolist():
        packed += bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255))
    tags = {256: 4, 257: 3, BITS: 12, 259: 1, PHOTOMETRIC: 1, 273: 8, 277: 1, 278: 3, 279: len(packed)}
    entries = b"".join(
        tag.to_bytes(2, "little") + b"\x04\x00\x01\x00\x00\x00" + value.to_bytes(4, "little")
        for tag, value in tags.items()
    )
    start = 8 + len(packed)
    header = b"II*\0" + start.to_bytes(4, "little") + packed + len(tags).to_bytes(2, "little") + entries + bytes(4)
    (tmp_path / "grey.tiff").write_bytes(header)
    assert_ramp(tmp_path / "grey.tiff")


def test_16_bits_a_colour(tmp_path: Path) -> None:
    """Pillow takes the higher byte."""
    colour = np.repeat(np.rint(RAMP * 65535).astype(">u2")[..., None], 3, 2)
    (tmp_path / "c.ppm").write_bytes(b"P6 4 3 65535\n" + colour.tobytes())
    assert_ramp(tmp_path / "c.ppm", within=1)


@pytest.mark.parametrize(
    ("kind", "file", "what"),
    [(np.float32, "depth.tiff", "floats"), (np.int32, "depth.tiff", "whole numbers")],
)
def test_numbers_that_do_not_say_what_is_white(kind: Any, file: str, what: str, tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(kind)).save(tmp_path / file)
    with pytest.raises(UsageError, match=rf"depth\.tiff holds {what}.*which is white: save it as a PNG"):
        read_image(tmp_path / file)


@pytest.mark.parametrize(("mode", "file"), [("RGBA", "a.png"), ("LA", "a.png"), ("RGBA", "a.webp"), ("RGBA", "a.tiff")])
def test_what_is_transparent_shows_white(mode: str, file: str, tmp_path: Path) -> None:
    image = Image.new(mode, (6, 1), 0)
    black = (0, 255) if mode == "LA" else (0, 0, 0, 255)
    half = (0, 128) if mode == "LA" else (0, 0, 0, 128)
    image.putpixel((1, 0), black)
    image.putpixel((2, 0), half)
    image.save(tmp_path / file, **({"lossless": True, "exact": True} if file.endswith("webp") else {}))
    assert np.asarray(read_image(tmp_path / file))[0, :4, 0].tolist() == [255, 0, 127, 255]


@pytest.mark.parametrize(
    ("mode", "values", "key", "kind"),
    [("P", [0, 1, 1], 1, np.uint8), ("L", [0, 7, 7], 7, np.uint8), ("I;16", [0, 7, 7], 7, np.uint16)],
)
def test_one_value_that_is_transparent(mode: str, values: list[int], key: int, kind: Any, tmp_path: Path) -> None:
    image = Image.fromarray(np.array([values], kind))
    if mode == "P":
        image = image.convert("L")
        image.putpalette([0, 0, 0, 200, 0, 0])
    image.save(tmp_path / "key.png", transparency=key)
    assert np.asarray(read_image(tmp_path / "key.png"))[0].tolist() == [[0, 0, 0], [255] * 3, [255] * 3]


@pytest.mark.parametrize("file", ["moving.gif", "moving.webp", "moving.png"])
def test_of_an_animation_the_first_frame(file: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / file, save_all=True, append_images=frames[1:], duration=100)
    assert np.asarray(read_image(tmp_path / file)).min() > 250


def test_pages(tmp_path: Path) -> None:
    pages = [Image.new("L", (8, 8), 255), Image.new("L", (8, 8))]
    pages[0].save(tmp_path / "scan.tiff", save_all=True, append_images=pages[1:])
    with pytest.raises(UsageError, match=r"scan\.tiff has 2 pages: save the one"):
        read_image(tmp_path / "scan.tiff")
    small = pages[1].copy()
    small.encoderinfo = {"tiffinfo": {SUBFILE: 1}}  # type: ignore[attr-defined]
    pages[0].save(tmp_path / "camera.tiff", save_all=True, append_images=[small])
    assert np.asarray(read_image(tmp_path / "camera.tiff")).min() == 255


def test_a_photo_stands_upright(tmp_path: Path) -> None:
    image, exif = picture(20, 10), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # held so that it must be turned clockwise
    image.save(tmp_path / "photo.png", exif=exif)
    upright = image.transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), upright)


def test_unreadable(tmp_path: Path) -> None:
    picture(200, 100).save(tmp_path / "image.png")
    whole = (tmp_path / "image.png").read_bytes()
    for content in (b"", whole[: len(whole) // 2]):
        (tmp_path / "half.png").write_bytes(content)
        with pytest.raises(UsageError, match=r"half\.png cannot be read"):
            read_image(tmp_path / "half.png")
    with pytest.raises(UsageError, match="cannot be read"):
        read_image(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        read_image(tmp_path / "none.png")
