"""Small trees of real image files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
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
