"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str) -> Path:
    """Returns a path with a leading `~` replaced by the home directory, as it is where there is none to be found."""
    # `Path.expanduser` raises without a home directory and for an unknown user.
    return Path(os.path.expanduser(path))  # noqa: PTH111
