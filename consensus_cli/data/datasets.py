"""The registry of datasets and the two things to do with one: check what was asked for, and load it."""

from __future__ import annotations

from pathlib import Path

from consensus_cli.data.archives import ARCHIVES
from consensus_cli.data.decoded import load_decoded
from consensus_cli.data.digits import Digits
from consensus_cli.data.files import ImageFiles
from consensus_cli.data.folder import FOLDERS
from consensus_cli.data.hf import HuggingFace
from consensus_cli.data.loading import shortage
from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.sampling import stratified_subset
from consensus_cli.data.soundness import without_unreadable
from consensus_cli.data.source import (
    SMALLEST_SIZE,
    SPLIT_SEED,
    ImageData,
    Parts,
    Progress,
    Request,
    Source,
    channel_statistics,
)
from consensus_cli.data.split import Split
from consensus_cli.errors import ConfigError, UserError, unknown_name

DATASETS: dict[str, Source] = {"digits": Digits(), **ARCHIVES, **FOLDERS, "hf": HuggingFace()}

# Decoded images up to this size live in memory: CIFAR-10 takes 0.17 GiB, 13,000 images of 224 pixels 1.8 GiB.
MEMORY_LIMIT_BYTES = 1024**3
STATISTICS_IMAGES = 1000

# In pixels; no network sees more of an image, and a batch of such images fits into no memory.
LARGEST_SIZE = 16_384


def load(
    name: str,
    *,
    cache_dir: Path,
    root: Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    seed: int = 0,
    streaming: bool | None = None,
    on_corrupt: str = "error",
    val_fraction: float = 0.1,
    hf_name: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> ImageData:
    """Loads a dataset as training, validation and test images.

    Which image belongs to which split never changes; `seed` only picks the images that a limit leaves.

    Args:
        name: key of `DATASETS`.
        cache_dir: folder of downloads and decoded images.
        root: folder of the dataset; needed for folders of images.
        download: fetch missing files.
        image_size: height and width in pixels; None for the dataset's own.
        limit_train: use at most this many training images, about equally many per class.
        limit_test: the same for the test images, and for the validation images.
        seed: picks the images within the limits.
        streaming: decode image files batch by batch instead of keeping them in memory; None decides by size.
        on_corrupt: `error` or `skip`, for image files that cannot be read.
        val_fraction: share of the training images, in [0, 1), held out for validation where the dataset brings no
            validation images.
        hf_name: name or folder of a Hugging Face dataset.
        workers: processes or threads that decode; None for as many as there are processors, at most 8.
        progress: told about slow work: `(description, done, total)`.

    Raises:
        UserError: if arguments are wrong, or files are missing or broken.
    """
    problems = check(
        name,
        cache_dir=cache_dir,
        root=root,
        download=download,
        image_size=image_size,
        limit_train=limit_train,
        limit_test=limit_test,
        streaming=streaming,
        on_corrupt=on_corrupt,
        val_fraction=val_fraction,
        hf_name=hf_name,
        workers=workers,
    )
    if problems:
        raise ConfigError(problems) if len(problems) > 1 else problems[0]
    request = Request(root, download, image_size, val_fraction, on_corrupt, cache_dir, hf_name, workers, progress)
    parts = DATASETS[name].read(request)
    splits = (
        _limit(parts.train, limit_train, seed),
        _limit(parts.val, limit_test, seed),
        _limit(parts.test, limit_test, seed),
    )
    if len(splits[0]) == 0:
        raise UserError(
            f"dataset.val_fraction={val_fraction} leaves no training images", "lower it: 0.1 holds a tenth of them out"
        )
    in_memory = not streaming and (streaming is False or _decoded_bytes(splits) <= MEMORY_LIMIT_BYTES)
    (train, val, test), notes = _ready(splits, in_memory, request)
    for what, split in (("training", train), ("test", test)):
        if len(split) == 0:
            raise UserError(
                "; ".join([f"no {what} images are left", *notes]),
                "use more images: where there is no test folder, a fifth of each class is tested on",
            )
    mean, std = _statistics(parts, train)
    return ImageData(name, train, val, test, parts.classes, parts.augmentation, mean, std, (*parts.notes, *notes))


def check(
    name: str,
    *,
    cache_dir: Path,
    root: Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    streaming: bool | None = None,
    on_corrupt: str = "error",
    val_fraction: float = 0.1,
    hf_name: str | None = None,
    workers: int | None = None,
) -> list[UserError]:
    """Returns everything that is wrong with a request for data; cheap, reads no image. Arguments as `load`."""
    if name not in DATASETS:
        return [unknown_name("dataset", name, DATASETS)]
    source = DATASETS[name]
    problems = _check_numbers(image_size, limit_train, limit_test, val_fraction, workers)
    if on_corrupt not in ("error", "skip"):
        problems.append(unknown_name("value of dataset.on_corrupt", on_corrupt, ("error", "skip")))
    if streaming and not source.streams:
        problems.append(
            UserError(f"dataset '{name}' lives in memory and cannot be streamed", "set dataset.streaming=null")
        )
    if hf_name is not None and not source.uses_hf_name:
        problems.append(UserError(f"dataset '{name}' takes no dataset.name", "set dataset=hf to use it"))
    request = Request(root, download, image_size, val_fraction, on_corrupt, cache_dir, hf_name, workers, None)
    return problems + source.check(request)


def check_image_size(key: str, size: int | None) -> list[UserError]:
    """Returns what is wrong with a size of images in pixels that a configuration calls `key`; null is the dataset's."""
    if size is not None and size > LARGEST_SIZE:
        return [UserError(f"{key}={size} is too large", f"allowed: null, or {SMALLEST_SIZE} to {LARGEST_SIZE} pixels")]
    return _check_least(key, size, SMALLEST_SIZE, "pixels")


def _check_numbers(
    image_size: int | None,
    limit_train: int | None,
    limit_test: int | None,
    val_fraction: float,
    workers: int | None,
) -> list[UserError]:
    problems = check_image_size("dataset.image_size", image_size)
    problems += _check_least("dataset.limit_train", limit_train, 1, "images")
    problems += _check_least("dataset.limit_test", limit_test, 1, "images")
    problems += _check_least("dataset.workers", workers, 0, "workers")
    if not 0 <= val_fraction < 1:
        problems.append(
            UserError(
                f"dataset.val_fraction={val_fraction} is not a share of the training images",
                "allowed: at least 0 and less than 1",
            )
        )
    return problems


def _check_least(key: str, value: int | None, least: int, unit: str) -> list[UserError]:
    if value is None or value >= least:
        return []
    return [UserError(f"{key}={value} is too small", f"allowed: null or at least {least} {unit}")]


def _limit(split: Split, limit: int | None, seed: int) -> Split:
    if limit is None or limit >= len(split):
        return split
    return split.subset(stratified_subset(split.labels, limit, seed))


def _decoded_bytes(splits: tuple[Split, ...]) -> int:
    sizes = [split.image_shape for split in splits]
    return sum(len(split) * c * h * w for split, (c, h, w) in zip(splits, sizes, strict=True))


def _ready(splits: tuple[Split, Split, Split], in_memory: bool, request: Request) -> tuple[list[Split], list[str]]:
    """Returns the splits with their files decoded, or else looked at, and what is to be said about them.

    Raises:
        UserError: files of one or more splits cannot be read.
    """
    prepare = load_decoded if in_memory else without_unreadable
    ready: list[Split] = []
    notes: list[str] = []
    problems: list[UserError] = []
    for split in splits:
        if not isinstance(split, ImageFiles):
            ready.append(split)
            continue
        try:
            prepared, told = prepare(split, request.cache_dir, request.progress)
        except UserError as error:
            problems.append(error)
            continue
        ready.append(prepared)
        notes += told
    if problems:
        raise ConfigError(problems) if len(problems) > 1 else problems[0]
    if isinstance(ready[0], ImageFiles):
        short = shortage(ready[0].image_shape, request.workers)
        notes += [] if short is None else [short]
    return ready, notes


def _statistics(parts: Parts, train: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if parts.mean is not None and parts.std is not None:
        return parts.mean, parts.std
    if isinstance(train, ImageTensors):
        return channel_statistics(train)
    sample = train.subset(stratified_subset(train.labels, STATISTICS_IMAGES, SPLIT_SEED))
    assert isinstance(sample, ImageFiles)
    in_memory, _ = load_decoded(sample, None, None)
    return channel_statistics(in_memory)
