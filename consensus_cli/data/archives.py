"""Small benchmark datasets that torchvision knows how to fetch, check and read."""

from __future__ import annotations

import inspect
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.request import Request
from consensus_cli.data.source import ImageData, divide
from consensus_cli.data.split import Augmentation
from consensus_cli.errors import UserError, first_line

# What torchvision raises for files that are missing or broken, and for a host that cannot be reached.
READ_FAILURES = (RuntimeError, ValueError, OSError, EOFError, AssertionError)


@dataclass(frozen=True)
class Archive:
    """A dataset of torchvision that fits in memory (a `Source`).

    Attributes:
        name: as the user calls it, and the folder of its downloads.
        class_name: the torchvision dataset.
        unpacked: path under the root that is there once the files are in place.
        mean: per channel, of the training images in [0, 1].
        std: per channel, of the training images in [0, 1].
        augmentation: random changes that suit the images.
    """

    name: str
    class_name: str
    unpacked: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation

    streams = False

    @property
    def dataset_class(self) -> Any:
        """The torchvision dataset."""
        # Late, as everywhere in this package: torchvision imports PyTorch's compiler, which takes seconds.
        from torchvision import datasets

        return getattr(datasets, self.class_name)

    def check(self, request: Request, cache_dir: Path) -> list[UserError]:
        """Finds out whether files are there at all, without opening them."""
        root = request.folder or cache_dir / self.name
        present = (root / self.unpacked).exists() or self._packed(root) is not None
        return [] if present or request.download else [self._missing(root)]

    def read(self, request: Request, cache_dir: Path) -> ImageData:
        """Returns torchvision's training and test images, some of the former held out for validation.

        Raises:
            UserError: if the files are missing or broken and cannot be fetched.
        """
        root = request.folder or cache_dir / self.name
        train_set, test_set = self._open(root, request.download)
        every = _in_memory(train_set, request.image_size)
        splits = divide({"train": every, "test": _in_memory(test_set, request.image_size)}, request.val_fraction)
        classes = tuple(getattr(train_set, "classes", map(str, every.labels.unique().tolist())))
        return ImageData(self.name, *splits, classes, self.augmentation, self.mean, self.std)

    def _packed(self, root: Path) -> Path | None:
        if not hasattr(self.dataset_class, "tgz_md5"):
            return None
        path = root / self.dataset_class.filename
        return path if path.is_file() else None

    def _open(self, root: Path, download: bool) -> tuple[Any, Any]:
        try:
            return self._datasets(root, download=False)
        except READ_FAILURES as error:
            if self._packed(root) is None and not download:
                raise self._missing(root) if not (root / self.unpacked).exists() else self._broken(root) from error
        self._fetch(root, download)
        try:
            return self._datasets(root, download=False)
        except READ_FAILURES as error:
            raise self._broken(root) from error

    def _datasets(self, root: Path, download: bool) -> tuple[Any, Any]:
        # SVHN is asked for by the name of the split, the others by whether it is for training.
        by_name = "split" in inspect.signature(self.dataset_class).parameters
        train, test = ({"split": "train"}, {"split": "test"}) if by_name else ({"train": True}, {"train": False})
        return tuple(self.dataset_class(root, download=download, **key) for key in (train, test))

    def _fetch(self, root: Path, download: bool) -> None:
        """Unpacks the archive in `root`, or downloads; files move into `root` only when all are complete."""
        from torchvision.datasets.utils import check_integrity, extract_archive

        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / ".fetch.lock"), tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as folder:
                packed = self._packed(root)
                if packed is not None and check_integrity(packed, self.dataset_class.tgz_md5):
                    extract_archive(packed, folder)
                elif download:
                    self._datasets(Path(folder), download=True)
                else:
                    raise self._broken(root)
                _move_files(Path(folder), root)
        except READ_FAILURES as error:
            raise UserError(
                f"dataset '{self.name}' could not be fetched into {root}: {first_line(error)}",
                "check the connection and the free space, or copy the files there from another machine and set "
                "dataset.download=false",
            ) from error

    def _missing(self, root: Path) -> UserError:
        return UserError(
            f"dataset '{self.name}' is not in {root}",
            f"set dataset.download=true, or dataset.root to the folder that holds {self.unpacked}",
        )

    def _broken(self, root: Path) -> UserError:
        return UserError(
            f"the files of dataset '{self.name}' in {root} are incomplete or damaged",
            "set dataset.download=true to fetch them again",
        )


def _in_memory(dataset: Any, image_size: int | None) -> ImageTensors:
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    images = torch.as_tensor(np.ascontiguousarray(dataset.data))
    if images.ndim == 3:  # (n, h, w): grey images
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:  # (n, h, w, 3)
        images = images.permute(0, 3, 1, 2)
    if image_size is not None and image_size != images.shape[-1]:
        from torchvision.transforms.v2 import functional as tvf

        size = [image_size, image_size]
        images = torch.cat([tvf.resize(chunk, size, antialias=True) for chunk in images.split(1024)])
    return ImageTensors(images.contiguous(memory_format=torch.channels_last), torch.as_tensor(labels))


def _move_files(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)


PHOTO = Augmentation(pad=4, flip=True)

_EVERY = (
    Archive("cifar10", "CIFAR10", "cifar-10-batches-py", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), PHOTO),
    Archive("cifar100", "CIFAR100", "cifar-100-python", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), PHOTO),
    Archive("svhn", "SVHN", "train_32x32.mat", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), Augmentation(pad=4)),
    Archive(
        "fashion_mnist",
        "FashionMNIST",
        "FashionMNIST/raw/train-images-idx3-ubyte",
        (0.2860,),
        (0.3530,),
        Augmentation(pad=2, flip=True),
    ),
)
ARCHIVES = {archive.name: archive for archive in _EVERY}
