"""The original network, trained once and kept for every run that needs the same one."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import Tensor

from consensus_cli.data.share import Share
from consensus_cli.errors import UserError
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.copying import clone
from consensus_cli.models.weights import load_into, read_state_dict, serialize
from consensus_cli.storage.atomic import remove_partial_files, write_atomic
from consensus_cli.storage.rundir import config_hash

#: a change in any of these changes what a baseline is
_SOURCES = ("models", "data", "training")


def cached(
    model: Classifier,
    determined_by: Mapping[str, Any],
    cache_dir: Path,
    train: Callable[[Classifier], None],
    share: Share,
) -> tuple[Path, bool]:
    """Gives `model` the weights of its baseline: from the cache, or by training it and filling the cache.

    Two jobs that need the same baseline do not train it twice: one trains, the other waits for it.

    Args:
        model: freshly built; receives the weights in place, the same way whether they were trained now or before: what
            its code keeps beside them while it is trained stays with the copy that is.
        determined_by: plain values that, with this package's code, determine the trained weights.
        cache_dir: folder of the cached checkpoints.
        train: trains a network in place, in all processes of the job.
        share: this process among those of the job; rank 0 reads and writes.

    Returns:
        The checkpoint's path, and whether it was there already.
    """
    key = config_hash({"determined_by": dict(determined_by), "code": code_hash_of_training()})
    path = cache_dir / f"{key[:16]}.safetensors"
    with ExitStack() as stack:

        def find() -> dict[str, Tensor] | None:
            cache_dir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_suffix(".lock")))
            remove_partial_files(path)
            return _readable(model, path)

        weights = share.lead(find)
        known = weights is not None
        if weights is None:
            trained = clone(model)
            train(trained)
            if share.leads:
                write_atomic(path, serialize(trained.network, {"key": key}))
            weights = share.lead(lambda: read_state_dict(path))
        load_into(model.network, weights, str(path))
    return path, known


def _readable(model: Classifier, path: Path) -> dict[str, Tensor] | None:
    if not path.is_file():
        return None
    try:
        weights = read_state_dict(path)
        load_into(clone(model).network, weights, str(path))
    except UserError:
        # Only a crash of the disk can leave a damaged file here; it holds nothing that cannot be made again.
        path.unlink()
        return None
    return weights


def code_hash_of_training() -> str:
    """Returns a hash of the code of this package that determines trained weights."""
    return package_hash(*_SOURCES)


@functools.cache
def package_hash(*names: str) -> str:
    """Returns a hash of the code of these packages of this one."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for name in names:
        for file in sorted((package / name).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
