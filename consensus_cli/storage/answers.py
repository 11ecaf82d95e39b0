"""Whether the networks of a run are right about each test image: what intervals between runs are paired by."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from consensus_cli.storage.atomic import write_atomic
from consensus_cli.storage.rundir import RunDir


def write_answers(files: RunDir, right: Mapping[str, Tensor]) -> None:
    """Writes, by network and attack, whether it is right about each image, (n,) bool; under attack n may be smaller."""
    packed = {
        name: base64.b64encode(np.packbits(values.numpy()).tobytes()).decode("ascii") for name, values in right.items()
    }
    images = {name: len(values) for name, values in right.items()}
    write_atomic(files.answers, json.dumps({"images": images, "right": packed}, indent=2) + "\n")


def read_answers(files: RunDir) -> dict[str, Tensor]:
    """Returns what `write_answers` wrote; nothing where it is lost or damaged, or an earlier version wrote the run."""
    try:
        content = json.loads(files.answers.read_bytes())
        return {name: _unpacked(text, int(content["images"][name])) for name, text in content["right"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _unpacked(text: str, images: int) -> Tensor:
    packed = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    if len(packed) != -(-images // 8):
        raise ValueError(f"{len(packed)} bytes for {images} images")
    return torch.from_numpy(np.unpackbits(packed, count=images).astype(bool))
