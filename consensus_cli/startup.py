"""Starting fast although PyTorch is large."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting_imports() -> Iterator[None]:
    """Imports large packages in its body without Python looking through them for garbage until the process ends.

    They are half a million objects that live as long as the process: searching them takes a second at start, and half
    of one whenever Python does it later. Where everything is imported already, nothing changes.
    """
    # What is garbage by now must not be kept with what the body imports.
    gc.collect()
    collecting, modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > modules:
            gc.freeze()
            atexit.unregister(_give_back)
            atexit.register(_give_back)
        if collecting:
            gc.enable()


def _give_back() -> None:
    """Lets the end of the process find what was imported: libraries complain about what is left over."""
    gc.unfreeze()
    # Python's own end searches for garbage all the same; this saves one round more.
    gc.disable()
