"""Every format, depth and colour mode gives the pixels that it stands for, in memory and streamed alike."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from helpers.image_trees import animation, encoded, png16, tiff
from helpers.loaded_trees import load
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from consensus_cli.data import decoding
from consensus_cli.data.decoding import UnreadableImageError, decode, is_suspect, side_lengths

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]
PICTURE = Image.fromarray(PIXELS)
GREY_16 = GREY.astype(np.uint16) * 257
COLOUR_16 = PIXELS.astype(np.uint16) * 257


def colour(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def grey(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(pixels)).expand(3, -1, -1)


def with_alpha() -> Image.Image:
    image = PICTURE.convert("RGBA")
    image.putalpha(Image.fromarray(PIXELS[..., 1]))
    return image


def smooth() -> Image.Image:
    """A picture that JPEG keeps well."""
    ramp = np.linspace(0, 255, 30).astype(np.uint8)
    return Image.fromarray(
        np.stack([np.tile(ramp, (20, 1)), np.full((20, 30), 60, np.uint8), np.tile(255 - ramp, (20, 1))], 2)
    )


def frames() -> list[Image.Image]:
    return [Image.fromarray(np.roll(PIXELS, shift, axis=1)) for shift in range(3)]


PALETTE = PICTURE.convert("P")
PALETTE_COLOURS = np.array(PALETTE.convert("RGB"))
ONE_BIT = np.array(PICTURE.convert("1").convert("L"))
LUMA = np.array(PICTURE.convert("L"))
INT32 = GREY.astype(np.int64)

# name -> (bytes, the exact pixels)
EXACT = {
    "png": (encoded(PICTURE, "PNG"), colour(PIXELS)),
    "png grey": (encoded(PICTURE.convert("L"), "PNG"), grey(LUMA)),
    "png one bit": (encoded(PICTURE.convert("1"), "PNG"), grey(ONE_BIT)),
    "png palette": (encoded(PALETTE, "PNG"), colour(PALETTE_COLOURS)),
    "png transparent palette": (encoded(PALETTE, "PNG", transparency=bytes(range(256))), colour(PALETTE_COLOURS)),
    "png grey with alpha": (encoded(PICTURE.convert("LA"), "PNG"), grey(LUMA)),
    "png colour with alpha": (encoded(with_alpha(), "PNG"), colour(PIXELS)),
    "png colour with a transparent one": (encoded(PICTURE, "PNG", transparency=(1, 2, 3)), colour(PIXELS)),
    "png animated": (animation(frames(), "PNG"), colour(PIXELS)),
    "png 16 grey": (png16(GREY_16), grey(GREY)),
    "png 16 grey with alpha": (png16(np.stack([GREY_16, GREY_16[::-1]], 2)), grey(GREY)),
    "png 16 colour": (png16(COLOUR_16), colour(PIXELS)),
    "png 16 colour with alpha": (png16(np.concatenate([COLOUR_16, GREY_16[..., None]], 2)), colour(PIXELS)),
    "png 16, rounded": (png16(np.clip(GREY_16.astype(np.int64) - 128, 0, None)), grey(GREY)),
    "webp lossless": (encoded(PICTURE, "WEBP", lossless=True), colour(PIXELS)),
    "webp with alpha": (encoded(with_alpha(), "WEBP", lossless=True, exact=True), colour(PIXELS)),
    "webp animated": (animation(frames(), "WEBP"), colour(PIXELS)),
    "bmp": (encoded(PICTURE, "BMP"), colour(PIXELS)),
    "bmp palette": (encoded(PALETTE, "BMP"), colour(PALETTE_COLOURS)),
    "gif": (encoded(PALETTE, "GIF"), colour(PALETTE_COLOURS)),
    "gif animated": (animation([PALETTE, PICTURE.convert("L")], "GIF"), colour(PALETTE_COLOURS)),
    "tiff": (encoded(PICTURE, "TIFF"), colour(PIXELS)),
    "tiff packed": (encoded(PICTURE, "TIFF", compression="tiff_lzw"), colour(PIXELS)),
    "tiff of several pages": (animation(frames(), "TIFF"), colour(PIXELS)),
    "tiff with alpha": (encoded(with_alpha(), "TIFF"), colour(PIXELS)),
    "tiff white is zero": (tiff(255 - GREY, bits=8, white_is_zero=True), grey(GREY)),
    "tiff 16 grey": (tiff(GREY_16, bits=16), grey(GREY)),
    "tiff 16 colour": (tiff(COLOUR_16, bits=16), colour(PIXELS)),
    "tiff 16 white is zero": (tiff(65535 - GREY_16, bits=16, white_is_zero=True), grey(GREY)),
    "tiff 16 signed": (tiff(np.rint(INT32 * (32767 / 255)).astype("<i2"), bits=16, signed=True), grey(GREY)),
    "tiff 32": (tiff(np.rint(INT32 * (2**32 - 1) / 255).astype("<u4"), bits=32), grey(GREY)),
    "tiff 32 signed": (tiff((INT32 * (2**31 - 1) // 255).astype("<i4"), bits=32, signed=True), grey(GREY)),
    "tiff 16 kept in 32": (encoded(Image.fromarray(GREY_16.astype(np.int32)), "TIFF"), grey(GREY)),
    "tiff of floats": (encoded(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"), grey(GREY)),
    "ppm": (encoded(PICTURE, "PPM"), colour(PIXELS)),
    "pgm 16": (b"P5 30 20 65535\n" + GREY_16.astype(">u2").tobytes(), grey(GREY)),
    "pgm of ten bits": (b"P5 30 20 1023\n" + np.rint(INT32 * (1023 / 255)).astype(">u2").tobytes(), grey(GREY)),
    "jpeg 2000": (encoded(PICTURE, "JPEG2000"), colour(PIXELS)),
    "jpeg 2000 16": (encoded(Image.fromarray(GREY_16), "JPEG2000"), grey(GREY)),
}
# JPEG and lossy WebP of a smooth picture: pixels to within a few levels
LOSSY = {
    "jpeg": encoded(smooth(), "JPEG", quality=95),
    "jpeg progressive": encoded(smooth(), "JPEG", quality=95, progressive=True),
    "jpeg cmyk": encoded(smooth().convert("CMYK"), "JPEG", quality=95),
    "jpeg of several pictures": encoded(smooth(), "MPO", quality=95, save_all=True, append_images=[PICTURE]),
    "tiff cmyk": encoded(smooth().convert("CMYK"), "TIFF"),
    # Earlier releases cannot read what they write here.
    **({"tiff ycbcr": encoded(smooth().convert("YCbCr"), "TIFF")} if int(PIL.__version__.split(".")[0]) >= 13 else {}),
    "webp": encoded(smooth(), "WEBP", quality=95),
}  # fmt: skip


def as_bytes(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(data), dtype=np.uint8))


@pytest.mark.parametrize("name", EXACT)
def test_pixels_are_what_the_file_stands_for(name: str) -> None:
    data, expected = EXACT[name]
    image = decode(as_bytes(data))
    assert (image.dtype, image.shape) == (torch.uint8, (3, 20, 30))
    assert torch.equal(image, expected)
    assert sorted(side_lengths(as_bytes(data))) == [20, 30]
    assert not is_suspect(len(data), data[:32], data[-64:])


@pytest.mark.parametrize("name", LOSSY)
def test_pixels_of_lossy_formats_are_near(name: str) -> None:
    image = decode(as_bytes(LOSSY[name]))
    assert (image.int() - colour(np.array(smooth())).int()).abs().float().mean() < 3
    assert not is_suspect(len(LOSSY[name]), LOSSY[name][:32], LOSSY[name][-64:])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_ordinary_jpegs_are_torchvision_s_bit_for_bit(mode: str) -> None:
    data = as_bytes(encoded(PICTURE.convert(mode), "JPEG", quality=80))
    assert torch.equal(decode(data), decode_image(data, mode=ImageReadMode.RGB))


@pytest.mark.filterwarnings("ignore:Palette images")
@pytest.mark.parametrize("name", [name for name in EXACT if name.split()[0] in ("png", "webp") and "16" not in name])
def test_both_readers_see_the_same(name: str) -> None:
    data, expected = EXACT[name]
    assert torch.equal(decoding._by_pillow(data), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(kind: str, orientation: int) -> None:
    turn = {
        1: lambda upright: upright,
        2: lambda upright: upright[:, ::-1],
        3: lambda upright: upright[::-1, ::-1],
        4: lambda upright: upright[::-1],
        5: lambda upright: upright.transpose(1, 0, 2),
        6: np.rot90,
        7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
        8: lambda upright: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.array(smooth())
    kept = Image.fromarray(np.ascontiguousarray(turn(upright)))
    settings = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}
    image = decode(as_bytes(encoded(kept, kind, exif=exif, **settings.get(kind, {}))))
    assert image.shape == (3, 20, 30)
    off = (image.int() - colour(upright).int()).abs().float().mean()
    assert off < 3 if kind == "JPEG" else off == 0


def with_wrong_bit(data: bytes, place: int) -> bytes:
    wrong = bytearray(data)
    wrong[place] ^= 1
    return bytes(wrong)


def png_of(pixels: bytes) -> bytes:
    """Returns a PNG of 4×4 colour pixels around a compressed stream, with right checksums."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


ROWS = 4 * (b"\0" + bytes(12))
HEIC = b"\0\0\0\x18ftypheic" + bytes(100)
UNREADABLE = {
    "empty": (b"", "empty"),
    "text": (b"a,b\n1,2\n", "no known image format"),
    "web page": (b"\n<!DOCTYPE html><title>404</title>", "an HTML page"),
    "xhtml": (b"<html><body>", "an HTML page"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git LFS pointer"),
    "annex": (b"/annex/objects/SHA256E-s9--00.png\n", "a git-annex pointer"),
    "resource fork": (b"\0\5\x16\7" + bytes(60), "a leftover of macOS"),
    "heic": (HEIC, "HEIC, which is not supported"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no known image format"),
    "cut png": (EXACT["png"][0][:900], "damaged"),
    "almost no png": (EXACT["png"][0][:40], "damaged: its head cannot be read"),
    "png with a wrong bit": (with_wrong_bit(EXACT["png"][0], 700), "damaged: wrong checksum"),
    "png with a wrong end": (with_wrong_bit(EXACT["png"][0], -20), "damaged: wrong checksum"),
    "png of no known filter": (png_of(zlib.compress(4 * (b"\x09" + bytes(12)))), "damaged: rows of pixels"),
    "png of few rows": (png_of(zlib.compress(ROWS[:20])), "damaged: rows of pixels are missing"),
    "png without pixels": (png_of(b""), "damaged: rows of pixels are missing"),
    "png of a broken stream": (png_of(with_wrong_bit(zlib.compress(ROWS), -1)), "damaged: Error -3"),
    "cut jpeg": (LOSSY["jpeg"][:500], "damaged"),
    "cut webp": (EXACT["webp lossless"][0][:900], "damaged"),
    "cut animation": (EXACT["webp animated"][0][:900], "damaged"),
    "cut gif": (EXACT["gif"][0][:900], "damaged"),
    "cut bmp": (EXACT["bmp"][0][:900], "damaged"),
    "cut tiff": (EXACT["tiff 16 grey"][0][:900], "damaged"),
    "head of a png": (EXACT["png"][0][:20], "damaged: Truncated File Read"),
    "negative numbers": (tiff(-GREY_16.astype("<i4") - 1, bits=32, signed=True), "whole numbers below 0"),
    "large floats": (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "numbers outside 0 to 1"),
    "not a number": (encoded(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF"), "floating-point numbers"),
}  # fmt: skip


KNOWN_WHEN_DECODED = (
    "cut bmp",
    "cut tiff",
    "cut animation",
    "negative numbers",
    "large floats",
    "not a number",
    "png with a wrong bit",
    "png with a wrong end",
    "png of no known filter",
    "png of few rows",
    "png without pixels",
    "png of a broken stream",
)


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_not_an_image_is_named(name: str) -> None:
    data, reason = UNREADABLE[name]
    with pytest.raises(UnreadableImageError, match=reason):
        decode(as_bytes(data))


@pytest.mark.parametrize("name", [name for name in UNREADABLE if name not in KNOWN_WHEN_DECODED])
def test_files_that_are_no_whole_images_look_suspicious(name: str) -> None:
    data, _ = UNREADABLE[name]
    assert is_suspect(len(data), data[:32], data[-64:])


def test_images_of_more_pixels_than_pillow_reads_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)
    with pytest.raises(UnreadableImageError, match="more pixels than Pillow reads"):
        decode(as_bytes(EXACT["bmp"][0]))
    assert torch.equal(decode(as_bytes(EXACT["png"][0])), colour(PIXELS))


def write_every_format(root: Path) -> list[Tensor]:
    """Writes every file under a suffix that says nothing, half of them in each class; returns the test images."""
    expected = []
    for number, (data, pixels) in enumerate(EXACT.values()):
        for part in ("train", "test"):
            folder = root / part / ("ant" if number < len(EXACT) // 2 else "bee")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:02}.jpg").write_bytes(data)
        expected.append(pixels[:, :, 5:25])
    for number, data in enumerate(LOSSY.values()):
        (root / "train" / "bee" / f"z{number}.png").write_bytes(data)
    return expected


def test_every_format_is_the_same_in_memory_and_streamed(tmp_path: Path) -> None:
    expected = torch.stack(write_every_format(tmp_path / "images")).float() / 255
    seen = []
    for streaming, workers in ((False, 2), (True, 0), (True, 2)):
        data = load(
            "imagefolder",
            root=tmp_path / "images",
            cache_dir=tmp_path / "cache",
            streaming=streaming,
            workers=workers,
            val_fraction=0,
        )
        assert data.train.image_shape == (3, 20, 20)
        train, test = (torch.cat([images for images, _ in split.batches(7)]) for split in (data.train, data.test))
        assert torch.equal(test, expected)
        seen.append(train)
    assert len(seen[0]) == len(EXACT) + len(LOSSY)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
