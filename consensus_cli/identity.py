"""Which run a directory belongs to, and the search for the directory of a run that was begun before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from consensus_cli.errors import UserError
from consensus_cli.rundir import RunDir, run_dirs, write_atomic


@dataclass(frozen=True)
class Identity:
    """What stays the same over all sittings of a run.

    Attributes:
        config_hash: hash of everything that changes the run's result.
        started_at: its beginning, ISO 8601, UTC.
        overrides: the words that led to it.
    """

    config_hash: str
    started_at: str
    overrides: tuple[str, ...]

    def write(self, run_dir: RunDir) -> None:
        """Writes it into the run directory."""
        write_atomic(run_dir.identity, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, run_dir: RunDir) -> Identity:
        """Reads it from a run directory, which may come from someone else.

        Raises:
            UserError: there is none, or it is damaged.
        """
        try:
            content = json.loads(run_dir.identity.read_bytes())
            identity = cls(content["config_hash"], content["started_at"], tuple(content["overrides"]))
            datetime.fromisoformat(identity.started_at)
            if not all(isinstance(text, str) for text in (identity.config_hash, *identity.overrides)):
                raise TypeError("texts expected")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"'{run_dir.identity}' does not say which run this is: {error}",
                "only what consensus run began can be resumed; start the run anew",
            ) from error
        return identity


def find(output_dir: Path, config_hash: str) -> RunDir | None:
    """Returns the directory of the run with this configuration: a finished one, else the one begun last, else None."""
    found = list(_with_hash(output_dir, config_hash))
    finished = [run_dir for run_dir in found if is_done(run_dir)]
    return next(reversed(finished or found), None)


def is_done(run_dir: RunDir) -> bool:
    """Says whether the run came to its end."""
    row = run_dir.read_row()
    return row is not None and row.get("status") == "done"


def _with_hash(output_dir: Path, config_hash: str) -> Iterator[RunDir]:
    for run_dir in run_dirs(output_dir, config_hash):
        try:
            same = Identity.read(RunDir.open(run_dir.path)).config_hash == config_hash
        except UserError:
            # Scores without a run, a directory that is just being made, or somebody's damaged copy.
            continue
        if same:
            yield run_dir
