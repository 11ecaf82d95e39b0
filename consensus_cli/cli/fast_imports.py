"""Starting fast although PyTorch is large, and anywhere: without a home directory, on a terminal of any encoding."""

from __future__ import annotations

import atexit
import gc
import io
import os
import pwd
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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


def fit_environment() -> None:
    """Makes the process fit for libraries that ask who and where they are, and the screen for every character.

    In containers and on clusters the user's number may have no name and no home directory (`docker run --user`).
    `getpass.getuser` and `Path.home`, which PyTorch's compiler, codecarbon and others call, raise there.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            # A file's name may hold what the terminal's encoding lacks: shown by its number, instead of an error.
            stream.reconfigure(errors="backslashreplace")
    if "HOME" in os.environ and {"LOGNAME", "USER", "LNAME", "USERNAME"} & set(os.environ):
        return
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", f"uid{os.getuid()}")
        if "HOME" not in os.environ:
            os.environ["HOME"] = str(_own_folder())


def _own_folder() -> Path:
    """Returns a folder for temporary files that belongs to this user alone, made if it is not there."""
    folder = Path(tempfile.gettempdir()) / f"consensus-home-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        # Somebody else was there first; what libraries read from a home directory may not be theirs.
        return Path(tempfile.mkdtemp(prefix="consensus-home-"))
    return folder


def _give_back() -> None:
    """Lets the end of the process find what was imported: libraries complain about what is left over."""
    gc.unfreeze()
    # Python's own end searches for garbage all the same; this saves one round more.
    gc.disable()
