"""Small trees of real image files."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import write_png

MakeTree = Callable[..., Path]


def random_images(count: int, height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def write_tree(root: Path, parts: dict[str, int], classes: tuple[str, ...], size: tuple[int, int]) -> Path:
    """Writes `ROOT/PART/CLASS/NUMBER.png`; the part `.` puts the classes right under the root."""
    for seed, (part, per_class) in enumerate(parts.items()):
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number, image in enumerate(random_images(per_class, *size, seed=100 * seed + label)):
                write_png(image, str(folder / f"{number}.png"))
    return root


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    """Returns the bytes of an image file as Pillow writes it."""
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def png16(pixels: np.ndarray) -> bytes:
    """Returns a PNG of 16 bits, which Pillow cannot write in colour: grey (h, w), or 2, 3 or 4 channels (h, w, c)."""
    height, width = pixels.shape[:2]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[1 if pixels.ndim == 2 else pixels.shape[2]]
    rows = pixels.astype(">u2").reshape(height, -1)

    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(pixels: np.ndarray, *, bits: int, signed: bool = False, white_is_zero: bool = False) -> bytes:
    """Returns an uncompressed TIFF of grey pixels (h, w) or colours (h, w, 3), of any depth that `pixels` has."""
    height, width = pixels.shape[:2]
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    photometric = 2 if samples == 3 else 0 if white_is_zero else 1
    start = 8 + 2 + 12 * 10 + 4
    depths = struct.pack(f"<{samples}H", *[bits] * samples) if samples > 1 else b""
    data = pixels.tobytes()
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, samples, start if samples > 1 else bits),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, start + len(depths)),
        (277, 3, 1, samples),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (339, 3, 1, 2 if signed else 1),
    ]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + struct.pack("<I", 0) + depths + data


def animation(images: list[Image.Image], kind: str) -> bytes:
    """Returns an animated GIF, WebP or PNG."""
    settings = {"lossless": True} if kind == "WEBP" else {}
    return encoded(images[0], kind, save_all=True, append_images=images[1:], duration=100, **settings)
