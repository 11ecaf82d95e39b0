"""The registry of datasets and the two things to do with one: check what was asked for, and load it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from consensus_cli.data.archives import ARCHIVES
from consensus_cli.data.decoded import load_decoded, without_unreadable
from consensus_cli.data.digits import Digits
from consensus_cli.data.files import Geometry, ImageFiles
from consensus_cli.data.folder import FOLDERS
from consensus_cli.data.hf import HuggingFace
from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.request import Request
from consensus_cli.data.sampling import stratified_subset
from consensus_cli.data.source import SPLIT_SEED, ImageData, Progress, Source, channel_statistics
from consensus_cli.data.split import Split
from consensus_cli.data.synthetic import Synthetic
from consensus_cli.errors import ConfigError, UserError, unknown_name

DATASETS: dict[str, Source] = {"digits": Digits(), **ARCHIVES, **FOLDERS, "hf": HuggingFace(), "synthetic": Synthetic()}

#: datasets of square images, of which nothing is cropped
_WHOLE = ("digits", *ARCHIVES, "synthetic")

# Decoded images up to this size live in memory: CIFAR-10 takes 0.17 GiB, 13,000 images of 224 pixels 1.8 GiB.
MEMORY_LIMIT_BYTES = 1024**3
STATISTICS_IMAGES = 1000


def load(request: Request, cache_dir: Path, *, seed: int = 0, progress: Progress | None = None) -> ImageData:
    """Loads a dataset as training, validation and test images.

    Which image belongs to which split never changes; `seed` only picks the images that a limit leaves.

    Args:
        request: which images; its values are in range.
        cache_dir: folder of decoded images, and of downloads where the request names no root.
        seed: picks the images within the limits.
        progress: told about slow work: `(description, done, total)`.

    Raises:
        UserError: the request does not fit the dataset, or files are missing or broken.
    """
    if problems := check(request, cache_dir):
        raise ConfigError(problems)
    request = available(request, cache_dir)
    found = DATASETS[request.source].read(request, cache_dir)
    limits = (request.limit_train, request.limit_test, request.limit_test)
    splits = [
        split if limit is None else split.subset(stratified_subset(split.labels, limit, seed))
        for split, limit in zip((found.train, found.val, found.test), limits, strict=True)
    ]
    if len(splits[0]) == 0:
        raise UserError(
            f"dataset.val_fraction={request.val_fraction} leaves no training images",
            "lower it: 0.1 holds a tenth of them out",
        )
    size_bytes = sum(len(split) * math.prod(split.image_shape) for split in splits)
    streaming = size_bytes > MEMORY_LIMIT_BYTES if request.streaming is None else request.streaming
    (train, val, test), notes = _ready(splits, streaming, cache_dir, progress)
    for what, split in (("training", train), ("test", test)):
        if len(split) == 0:
            raise UserError(
                "; ".join([f"no {what} images are left", *notes]),
                "use more images: where there is no test folder, a fifth of each class is tested on",
            )
    mean, std = (found.mean, found.std) if found.mean else _statistics(train)
    return replace(found, train=train, val=val, test=test, mean=mean, std=std, notes=(*found.notes, *notes))


def available(request: Request, cache_dir: Path) -> Request:
    """Returns the request, or where its files are not there and `if_missing` says so, one for synthetic images."""
    missing = request.if_missing == "synthetic" and DATASETS[request.source].check(request, cache_dir)
    return replace(request, source="synthetic", name="synthetic", root=None) if missing else request


def check(request: Request, cache_dir: Path) -> list[UserError]:
    """Returns everything wrong with a request but values out of range; cheap, reads no image. Arguments as `load`."""
    if request.source not in DATASETS:
        return [unknown_name("dataset", request.source, DATASETS)]
    source = DATASETS[available(request, cache_dir).source]
    problems = source.check(request, cache_dir)
    if request.streaming and not source.streams:
        problems.append(
            UserError(
                f"dataset '{request.source}' lives in memory and cannot be streamed", "set dataset.streaming=null"
            )
        )
    return problems


def _ready(
    splits: Sequence[Split], streaming: bool, cache_dir: Path, progress: Progress | None
) -> tuple[list[Split], list[str]]:
    """Returns the splits with their files decoded, or else looked at, and what is to be said about them.

    Raises:
        UserError: files of one or more splits cannot be read.
    """
    prepare = without_unreadable if streaming else load_decoded
    ready: list[Split] = []
    notes: list[str] = []
    problems: list[UserError] = []
    for split in splits:
        try:
            prepared, more = prepare(split, cache_dir, progress) if isinstance(split, ImageFiles) else (split, [])
        except UserError as error:
            problems.append(error)
            continue
        ready.append(prepared)
        notes += more
    if problems:
        raise ConfigError(problems)
    return ready, notes


def _statistics(train: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation per channel; of files, those of a sample."""
    if isinstance(train, ImageFiles):
        sample = train.subset(stratified_subset(train.labels, STATISTICS_IMAGES, SPLIT_SEED))
        train, _ = load_decoded(sample, None, None)
    assert isinstance(train, ImageTensors)
    return channel_statistics(train)


def resize_size(request: Request, image_size: int) -> int:
    """Returns how long the shorter side of an image is made before its centre of `image_size` is cropped, in pixels."""
    return image_size if request.source in _WHOLE else Geometry.for_size(image_size).resize_size
