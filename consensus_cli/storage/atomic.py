"""Files that are written as a whole or not at all, also when a process is killed or the power fails."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

_PARTIAL_SUFFIX = ".part"


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes a whole file or nothing: readers see the earlier content or the new one, also after a power cut.

    The data goes to a temporary file in the same folder, which is flushed to disk and renamed over `path`. An existing
    file keeps its permissions.

    Raises:
        OSError: the file cannot be written, such as on a full disk; the earlier file is intact and no part is left.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_PARTIAL_SUFFIX}")
    try:
        with partial.open("xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            if path.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    # The rename survives a power cut once the folder is on disk, too.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_partial_files(path: Path) -> None:
    """Removes what killed calls of `write_atomic(path, ...)` left; the caller must be the only writer of `path`."""
    for file in path.parent.iterdir():
        if file.name.startswith(f".{path.name}.") and file.name.endswith(_PARTIAL_SUFFIX):
            file.unlink(missing_ok=True)


def try_writing(path: Path) -> None:
    """Tries whether a file can be written, or where its folder is missing, the folder be made; changes nothing.

    Raises:
        OSError: it cannot be done. The superuser passes every permission bit, so only an attempt shows it.
        ValueError: no file can have this name.
    """
    folder = path.absolute().parent
    while not os.path.lexists(folder):
        folder = folder.parent
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-") as probe:
        probe.write(b"something")
        probe.flush()
        os.fsync(probe.fileno())
    with suppress(FileNotFoundError):
        path.open("r+b").close()
