"""Starting fast although PyTorch is large."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting_imports() -> Iterator[None]:
    """Imports large packages in its body without Python looking through them for garbage, then or later.

    They are half a million objects that live as long as the process: searching them takes a second at start, and half
    of one whenever Python does it later.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(_give_back)
        if collecting:
            gc.enable()


def _give_back() -> None:
    """Leaves what was imported to the end of the process: libraries complain about what they find left over."""
    gc.unfreeze()
    # Python's own end searches for garbage all the same; this saves one round more.
    gc.disable()
