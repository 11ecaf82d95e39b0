"""Test images that others corrupted or collected again, read from the archives in which they were published.

CIFAR-10-C and CIFAR-100-C (Hendrycks & Dietterich 2019), CIFAR-10.1 (Recht et al. 2018), CIFAR-10.2 (Lu et al. 2020)
and ImageNet-C are recognised by their files.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from consensus_cli.data.files import Geometry, ImageFiles
from consensus_cli.data.folder import FolderImages, class_names
from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.split import Split
from consensus_cli.errors import UserError
from consensus_cli.evaluation.accuracy import predict
from consensus_cli.evaluation.pair import Columns, Pair, gather, stratified
from consensus_cli.evaluation.robustness.distortions import SEVERITIES
from consensus_cli.evaluation.statistics import paired_change

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_LAYOUTS = "give the folder of CIFAR-10-C or ImageNet-C, the …data.npy of CIFAR-10.1, or the .npz of CIFAR-10.2"


@dataclass(frozen=True)
class Archive:
    """Published test images whose files are there and have the right form.

    Attributes:
        path: where they are.
        sets: name of each set, `<corruption>_s<severity>`, or empty where there is only one -> reads it; takes the
            image size in pixels that files are brought to.
        image_shape: (c, h, w) of every image; None for image files, which are brought to any size.
        classes: the least number of classes that the labels need; of image files, the number of class folders.
    """

    path: Path
    sets: Mapping[str, Callable[[int], Split]]
    image_shape: tuple[int, int, int] | None
    classes: int

    def check_fits(self, image_shape: tuple[int, int, int], classes: int) -> None:
        """Checks that a network for images (c, h, w) of so many classes can be tested on these.

        Raises:
            UserError: if the images have another shape, or the labels other classes.
        """
        needed = "×".join(map(str, image_shape))
        if self.image_shape is None:
            fits, found = image_shape[0] == 3 and classes == self.classes, f"colour images of {self.classes} classes"
        else:
            fits = image_shape == self.image_shape and classes >= self.classes
            found = f"images of {'×'.join(map(str, self.image_shape))} with labels up to {self.classes - 1}"
        if not fits:
            raise UserError(
                f"{self.path} holds {found}, the dataset's images are {needed} of {classes} classes",
                "name the archive that belongs to the dataset, or take it out of evaluate.shift",
            )


def shift_columns(pair: Pair, name: str, archive: Archive, images: int | None) -> Columns:
    """Returns accuracy of both networks on every set of a published archive, the mean, and the interval of its change.

    The interval is about images (paired bootstrap). It is left out where the sets do not hold the same images in the
    same order, so that an image's answers cannot be averaged over them. Several processes show whole sets each.

    Args:
        pair: the networks; progress is reported after each set.
        name: what the columns begin with.
        archive: the sets.
        images: test images of each set, stratified; None for all.
    """
    mine = [list(archive.sets.values())[i] for i in pair.share.part(len(archive.sets))]

    def answers() -> list[tuple[torch.Tensor, torch.Tensor]]:
        found = []
        for done, read in enumerate(mine, start=1):
            split = read(pair.test.image_shape[-1])
            if images is not None:
                split = stratified(split, images, pair.seed)
            right = [predict(model, split, pair.device).correct for model in pair.networks.values()]
            found.append((torch.stack(right).double(), split.labels))
            pair.report(f"testing on {name}", done, len(mine))
        return found

    shown = gather(pair.share, answers)
    means_pct = [(100 * right.mean(1)).tolist() for right, _ in shown]
    columns: Columns = {}
    for part, (base_pct, pruned_pct) in zip(archive.sets, means_pct, strict=True):
        if part:
            columns |= {f"{name}_{part}_base_pct": base_pct, f"{name}_{part}_pruned_pct": pruned_pct}
    mean_base, mean_pruned = (sum(of_sets) / len(shown) for of_sets in zip(*means_pct, strict=True))
    columns |= {
        f"{name}_accuracy_base_pct": mean_base,
        f"{name}_accuracy_pruned_pct": mean_pruned,
        f"{name}_accuracy_delta_pp": mean_pruned - mean_base,
        f"{name}_images": sum(len(labels) for _, labels in shown),
    }
    if all(torch.equal(shown[0][1], labels) for _, labels in shown):
        right_base, right_pruned = torch.stack([right for right, _ in shown]).mean(0)
        change = paired_change(right_base, right_pruned, pair.seed)
        columns[f"{name}_accuracy_ci95_low"] = change.ci95_low_pp
        columns[f"{name}_accuracy_ci95_high"] = change.ci95_high_pp
    return columns


def open_archive(name: str, path: Path) -> Archive:
    """Finds out what an archive is and checks its form; of arrays only the header and the labels are read.

    Args:
        name: what its columns begin with: small letters, digits and underscores.
        path: a folder with `labels.npy` and one `.npy` per corruption (CIFAR-10-C), a folder
            `<corruption>/<severity>/<class>/` of image files (ImageNet-C), a `…data.npy` with `…labels.npy` beside it
            (CIFAR-10.1), or an `.npz` with `images` and `labels` (CIFAR-10.2).

    Raises:
        UserError: if the name cannot be used, or a file is missing or has another form.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"'{name}' in evaluate.shift cannot begin a column's name",
            "use small letters, digits and underscores, such as cifar10c",
        )
    if (path / "labels.npy").is_file():
        files = sorted(file for file in path.glob("*.npy") if file.name != "labels.npy")
        if not files:
            raise UserError(f"{path} holds no corrupted images", "expected <corruption>.npy beside labels.npy")
        return _of_arrays(path, files, [f"_s{severity}" for severity in SEVERITIES])
    if path.is_dir():
        return _imagenet_c(path)
    if not path.is_file():
        raise UserError(f"evaluate.shift.{name}: there is nothing at '{path}'", _LAYOUTS)
    return _of_arrays(path, [path], [])


def _of_arrays(path: Path, files: Sequence[Path], parts: Sequence[str]) -> Archive:
    """Returns the archive of array files, each with the same parts one after the other; without parts, of one set."""
    found = [_arrays(file) for file in files]
    shapes, labels = {images.shape[1:] for images, _ in found}, found[0][1]
    if len(shapes) > 1 or len(labels) % max(1, len(parts)):
        raise UserError(
            f"{path} holds {len(labels)} labels and images of {len(shapes)} sizes",
            "expected the five severities of one test set, one after the other, in every file",
        )
    sets: dict[str, Callable[[int], Split]] = {
        f"{file.stem}{part}" if part else "": functools.partial(_read_rows, file, number, len(parts or [""]))
        for file in files
        for number, part in enumerate(parts or [""])
    }
    height, width, channels = shapes.pop()
    return Archive(path, sets, (channels, height, width), 1 + int(labels.max()))


def _read_rows(file: Path, number: int, parts: int, image_size: int) -> ImageTensors:
    images, labels = _arrays(file)
    count = len(labels) // parts
    rows = slice(number * count, (number + 1) * count)
    pixels = torch.from_numpy(np.array(images[rows])).permute(0, 3, 1, 2)
    return ImageTensors(pixels, torch.from_numpy(np.array(labels[rows], dtype=np.int64)))


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images (n, h, w, 3) uint8 of a file and their labels (n,)."""
    if path.suffix == ".npy":
        beside = path.name.replace("data", "labels") if "data" in path.name else "labels.npy"
        images, labels = _array(path), _array(path.with_name(beside))
    else:
        try:
            with np.load(path, allow_pickle=False) as archive:
                images, labels = archive["images"], archive["labels"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not an archive of images and labels", _LAYOUTS) from error
    colour = images.ndim == 4 and images.shape[-1] == 3 and images.dtype == np.uint8
    labelled = labels.shape == images.shape[:1] and len(labels) > 0 and labels.dtype.kind in "iu"
    if not colour or not labelled:
        raise UserError(
            f"{path} holds images of shape {images.shape} {images.dtype} with labels of shape {labels.shape}",
            "images are (n, h, w, 3) uint8 with n whole numbers as labels",
        )
    return images, labels


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as an array", _LAYOUTS) from error


def _imagenet_c(folder: Path) -> Archive:
    roots = {
        f"{corruption}_s{severity}": folder / corruption / severity
        for corruption in class_names(folder)
        for severity in class_names(folder / corruption)
    }
    classes = {tuple(class_names(root)) for root in roots.values()}
    if len(classes) != 1:
        raise UserError(
            f"{folder} holds {len(classes)} different sets of classes",
            "expected <corruption>/<severity>/<class>/*.JPEG, the same classes everywhere",
        )
    names = classes.pop()
    for root in roots.values():
        if not any(_files(root, names)):
            raise UserError(f"there are no images in {root}", "expected <corruption>/<severity>/<class>/*.JPEG")
    sets = {name: functools.partial(_read_files, root, names) for name, root in roots.items()}
    return Archive(folder, sets, None, len(names))


def _read_files(root: Path, classes: tuple[str, ...], image_size: int) -> ImageFiles:
    files = list(_files(root, classes))
    stamps = [(path.stat().st_size, path.stat().st_mtime_ns) for path, _ in files]
    images = FolderImages(root, [str(path.relative_to(root)) for path, _ in files], torch.tensor(stamps))
    labels = torch.tensor([label for _, label in files])
    return ImageFiles(
        images, torch.arange(len(files)), labels, Geometry.for_size(image_size), on_corrupt="error", workers=None
    )


def _files(root: Path, classes: tuple[str, ...]) -> Iterator[tuple[Path, int]]:
    return ((path, label) for label, name in enumerate(classes) for path in sorted((root / name).glob("*.JPEG")))
