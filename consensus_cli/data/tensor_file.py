"""Tensors kept in a file that can be made again: a damaged file counts as missing, and a full disk ends nothing."""

from __future__ import annotations

import logging
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

logger = logging.getLogger(__name__)


def read(path: Path) -> dict[str, Tensor] | None:
    """Returns what `write` wrote, on the CPU; None if there is no such file or it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if (file.metadata() or {}).get("crc32") == _checksum(tensors):
                return tensors
    except (SafetensorError, OSError):
        pass
    logger.warning("the cache file %s is damaged: what it held is made again", path)
    return None


def write(path: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Writes contiguous tensors of the CPU, under another name first: a run that is killed leaves no half file.

    Returns whether that could be done.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
            unfinished = Path(folder) / path.name
            save_file(dict(tensors), unfinished, metadata={"crc32": _checksum(tensors)})
            unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        logger.warning("%s is not kept for the next run: %s", path.name, error)
        return False
    return True


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].numpy().data, value)
    return f"{value:08x}"
