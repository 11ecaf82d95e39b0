"""The limits of a machine: memory that runs out, a disk that is full, a loss that is not a number any more."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from consensus_cli.errors import RunFailedError, ToldError, is_out_of_memory, raised_in_foreign_code
from consensus_cli.training import TrainingDivergedError

#: what the operating system says when nothing more can be written: no space, a file-size limit, a quota
_FULL = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})


@contextmanager
def explained(run_dir: Path, *, resumable: bool = True) -> Iterator[None]:
    """Reports unrecoverable errors as one line with a hint.

    Args:
        run_dir: the directory of the run, for the hint.
        resumable: whether what was done so far is kept.

    Raises:
        RunFailedError: instead of a full disk, exhausted memory, a diverged training, or an error in the network's own
            code that the dry run did not show.
    """
    again = f"continue with: consensus resume {run_dir}" if resumable else "repeat the command"
    try:
        yield
    except ToldError:
        raise
    except TrainingDivergedError as error:
        diverged = RunFailedError(
            f"training diverged: {error}",
            "lower finetune.learning_rate (for a baseline, baseline.learning_rate)"
            + (f"; the last good network is kept in {run_dir}" if resumable else ""),
        )
        # All processes of a job see the same loss.
        diverged.shared = True
        raise diverged from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise RunFailedError(f"cannot write any more: {error.strerror}", f"make room, then {again}") from error
        if is_out_of_memory(error):
            raise RunFailedError(
                "out of memory, with no smaller batch to try",
                "use a machine with more memory, smaller images, or lower scoring.memory_gb and attacks.images; "
                f"then {again}",
            ) from error
        if raised := raised_in_foreign_code(error):
            raise RunFailedError(f"the network's code raised {raised}", f"correct it, then {again}") from error
        raise
