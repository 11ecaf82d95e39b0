"""The unpruned network: loaded from a checkpoint, or trained once and kept for every run that needs the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from consensus_cli.errors import UserError
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.copying import clone
from consensus_cli.models.weights import load_into, read_state_dict, serialize
from consensus_cli.storage.atomic import remove_partial_files, write_atomic
from consensus_cli.storage.rundir import config_hash

#: a change in any of these changes what a baseline is
_SOURCES = ("models", "data", "training")


def cached(
    model: Classifier, determined_by: Mapping[str, Any], cache_dir: Path, train: Callable[[Classifier], None]
) -> tuple[Path, bool]:
    """Gives `model` the weights of its baseline: from the cache, or by training it and filling the cache.

    Two processes that need the same baseline do not train it twice: one trains, the other waits for it.

    Args:
        model: freshly built; receives the weights in place, the same way whether they were trained now or before: what
            its code keeps beside them while it is trained stays with the copy that is.
        determined_by: plain values that, with this package's code, determine the trained weights.
        cache_dir: folder of the cached checkpoints.
        train: trains a network in place.

    Returns:
        The checkpoint's path, and whether it was there already.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    key = config_hash({"determined_by": dict(determined_by), "code": _code_hash()})
    path = cache_dir / f"{key[:16]}.safetensors"
    with FileLock(path.with_suffix(".lock")):
        remove_partial_files(path)
        if path.is_file():
            try:
                load_into(model.network, read_state_dict(path), str(path))
            except UserError:
                # Only a crash of the disk can leave a damaged file here; it holds nothing that cannot be made again.
                path.unlink()
            else:
                return path, True
        trained = clone(model)
        train(trained)
        write_atomic(path, serialize(trained.network, {"key": key}))
        load_into(model.network, read_state_dict(path), str(path))
    return path, False


def _code_hash() -> str:
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for name in _SOURCES:
        for file in sorted((package / name).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
