"""From the bytes of an image file to RGB pixels of 8 bits, the same for images in memory and streamed ones.

torchvision decodes JPEG, PNG and WebP; Pillow decodes everything else, and what torchvision does not take. The content
decides, not the name. Of an animation the first frame is taken; images are turned upright as their EXIF orientation
says; transparency is dropped; deeper images are scaled to 8 bits by their depth.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
import zlib

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from consensus_cli.errors import first_line

IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png",
    ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip

# Of Pillow's readers those for pictures that start no other program: Ghostscript would read EPS.
_PILLOW_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_OTHER_BEGINNINGS = (
    b"BM", b"II*\0", b"MM\0*", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"\0\0\0\x0cjP  ", b"\xff\x4f",
)  # fmt: skip
_WEBP_ANIMATED, _WEBP_EXIF = 0x02, 0x08
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF's numbers of these entries

#: beginning of a file (lower case) -> what the file is instead of an image
_NO_IMAGES = {
    b"version https://git-lfs": "a Git LFS pointer: the image was not fetched",
    b"/annex/objects/": "a git-annex pointer: the image was not fetched",
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<?xml": "an XML file",
    b"<svg": "an SVG drawing",
    b"\0\x05\x16\x07": "a leftover of macOS",
}
_AVIF_BRANDS = (b"ftypavif", b"ftypavis")
_HEIC_BRANDS = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc")

# Pillow warns of oddities in files that it reads nevertheless, hundreds of times where a folder is full of them.
warnings.filterwarnings("ignore", module=r"PIL\.")


class UnreadableImageError(Exception):
    """A file that is no image that can be decoded; the text says why in a few words."""


def read_file(path: str) -> Tensor:
    """Returns the bytes of a file, (m,) uint8; its name need not be text in UTF-8.

    Raises:
        UnreadableImageError: it is not there, or cannot be read.
    """
    try:
        # Opening a named pipe would wait for somebody to write into it.
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 (a Path per image takes time)
            raise UnreadableImageError("not a file")
        return torch.from_numpy(np.fromfile(path, dtype=np.uint8))
    except FileNotFoundError as error:
        raise UnreadableImageError("a link to nowhere" if os.path.islink(path) else "gone") from error  # noqa: PTH114
    except OSError as error:
        raise UnreadableImageError((error.strerror or type(error).__name__).lower()) from error


def decode(data: Tensor) -> Tensor:
    """Returns an image in RGB, (3, h, w) uint8.

    Args:
        data: the bytes of its file, (m,) uint8.

    Raises:
        UnreadableImageError: the bytes are not an image, are damaged, or hold numbers whose range is not known.
    """
    image = _by_torchvision(data)
    return _by_pillow(data.numpy().tobytes()) if image is None else image


def side_lengths(data: Tensor) -> tuple[int, int]:
    """Returns the two sides of an image in pixels, in no particular order, from the head of its file.

    Raises:
        UnreadableImageError: the bytes are not an image.
    """
    content = data.numpy().tobytes()
    return _open(content).size


def is_suspect(size_bytes: int, head: bytes, tail: bytes) -> bool:
    """Says whether a file may be no whole image, as far as its ends show: to be decoded before it is relied on.

    Args:
        size_bytes: of the file.
        head: its first 32 bytes.
        tail: its last 64 bytes.
    """
    if head.startswith(_JPEG):
        return b"\xff\xd9" not in tail
    if head.startswith(_PNG):
        return b"IEND" not in tail
    if _is_webp(head):
        return int.from_bytes(head[4:8], "little") + 8 > size_bytes
    if head.startswith((b"GIF87a", b"GIF89a")):
        return not tail.rstrip(b"\0").endswith(b";")
    return not (head.startswith(_OTHER_BEGINNINGS) or head[4:12] in _AVIF_BRANDS)


def _is_webp(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def _by_torchvision(data: Tensor) -> Tensor | None:
    """Returns None for what torchvision cannot decode, or would decode in another way than Pillow."""
    from torchvision.io import ImageReadMode, decode_image

    head = data[:32].numpy().tobytes()
    if _is_webp(head):
        if head[12:16] == b"VP8X" and head[20] & (_WEBP_ANIMATED | _WEBP_EXIF):
            return None
    elif head.startswith(_PNG + b"\0\0\0\x0dIHDR"):
        _check_png(data.numpy().data)
    elif not head.startswith(_JPEG):
        return None
    try:
        image = decode_image(data, mode=ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError:
        return None
    return image if image.dtype == torch.uint8 else _scaled(image.numpy(), 2**16 - 1)


def _check_png(content: memoryview) -> None:
    """Checks what a PNG cannot do without, checksums and pixels: torchvision's reader ends the process at a wrong one.

    Raises:
        UnreadableImageError: something is wrong.
    """
    start, kind, pixels = len(_PNG), b"", bytearray()
    # What is cut both readers notice.
    while (end := start + 8 + int.from_bytes(content[start : start + 4], "big")) + 4 <= len(content):
        kind = bytes(content[start + 4 : start + 8])
        # Chunks that begin with a small letter libpng leaves out where they are wrong.
        if kind[:1].isupper() and zlib.crc32(content[start + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            raise UnreadableImageError("damaged: wrong checksum")
        if kind == b"IDAT":
            pixels += content[start + 8 : end]
        start = end + 4
    header = content[len(_PNG) + 8 :]
    if kind != b"IEND":
        return
    width, height = (int.from_bytes(header[place : place + 4], "big") for place in (0, 4))
    bits = header[8] * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(header[9], 1)
    row = 1 + (width * bits + 7) // 8
    try:
        # No more than an interlaced image takes, however much a crafted file would unpack to.
        unpacked = zlib.decompressobj().decompress(pixels, 2 * row * height + 64)
    except zlib.error as error:
        raise UnreadableImageError(f"damaged: {error}") from error
    # Each row begins with the number of its filter, 0 to 4; interlaced rows have other lengths.
    if header[12] == 0 and (len(unpacked) < row * height or max(unpacked[: row * height : row], default=0) > 4):
        raise UnreadableImageError("damaged: rows of pixels are missing or wrong")


def _by_pillow(content: bytes) -> Tensor:
    image = _open(content)
    try:
        upright = ImageOps.exif_transpose(image)
        depth = _depth(image)
        if depth is not None:
            return _grey(np.asarray(upright), depth, inverted=image.mode != "F" and _entry(image, _PHOTOMETRIC) == 0)
        return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1)
    except (MemoryError, UnreadableImageError):
        raise
    # Readers of damaged files fail in every way there is.
    except Exception as error:
        raise UnreadableImageError(f"damaged: {first_line(error)}") from error


def _open(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=_PILLOW_FORMATS)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError(_what_instead(content)) from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError("more pixels than Pillow reads") from error
    except Exception as error:
        raise UnreadableImageError(f"damaged: {first_line(error)}") from error


def _depth(image: Image.Image) -> int | None:
    """Returns the value of white in an image whose numbers are deeper than 8 bits; None for 8 bits.

    Raises:
        UnreadableImageError: the range of the numbers is not known.
    """
    if image.mode.startswith("I;16"):
        bits = _entry(image, _BITS_PER_SAMPLE)
        return 2 ** (16 if bits is None else bits) - 1
    if image.mode == "I":
        return _depth_of_integers(image)
    if image.mode == "F":
        values = np.asarray(image)
        # Written so that NaN does not pass.
        if not (values.min() >= 0 and values.max() <= 1):
            raise UnreadableImageError("floating-point numbers outside 0 to 1")
        return 1
    return None


def _depth_of_integers(image: Image.Image) -> int:
    values = np.asarray(image)
    bits, unsigned = _entry(image, _BITS_PER_SAMPLE) or 32, _entry(image, _SAMPLE_FORMAT) == 1
    if values.min() < 0 and not unsigned:
        raise UnreadableImageError("whole numbers below 0")
    if bits < 32:
        return 2 ** (bits if unsigned else bits - 1) - 1
    # 16 bits are often kept in 32; an image that uses no more of them would be black otherwise.
    if 0 <= values.min() <= values.max() < 2**16:
        return 2**16 - 1
    return 2**32 - 1 if unsigned else 2**31 - 1


def _entry(image: Image.Image, number: int) -> int | None:
    """Returns an entry of a TIFF file's directory, the first value of several; None where there is none."""
    if image.format != "TIFF":
        return None
    value = image.tag_v2.get(number)  # type: ignore[attr-defined]
    return value[0] if isinstance(value, tuple) else value


def _grey(values: np.ndarray, depth: int, *, inverted: bool) -> Tensor:
    if values.dtype == np.int32 and depth == 2**32 - 1:
        values = values.view(np.uint32)
    grey = _scaled(values, depth)
    return (255 - grey if inverted else grey).expand(3, -1, -1)


def _scaled(values: np.ndarray, depth: int) -> Tensor:
    """Maps numbers from 0 to `depth` to uint8, rounded to the nearest: `depth` / 255 times a level is that level."""
    return torch.from_numpy(np.rint(values.astype(np.float64) * (255 / depth)).astype(np.uint8))


def _what_instead(content: bytes) -> str:
    if not content:
        return "empty"
    if content[4:12] in _HEIC_BRANDS:
        return "HEIC, which is not supported"
    if content.startswith((_JPEG, _PNG, *_OTHER_BEGINNINGS, b"GIF8")) or _is_webp(content):
        return "damaged: its head cannot be read"
    head = content[:64].lstrip().lower()
    return next((what for beginning, what in _NO_IMAGES.items() if head.startswith(beginning)), "no known image format")
