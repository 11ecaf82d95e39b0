"""Which run a directory belongs to, and the search for the directory of a run that was begun before."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from consensus_cli.errors import UserError
from consensus_cli.storage.atomic import write_atomic
from consensus_cli.storage.rundir import RunDir, run_dirs


@dataclass(frozen=True)
class Identity:
    """What stays the same over all sessions of a run.

    Attributes:
        config_hash: hash of every setting that changes the run's result.
        started_at: its beginning, ISO 8601, UTC.
        overrides: the words that led to it.
        inputs: what the run reads besides -> hash of its content (see `inputs.Inputs`); None in the directory of an
            earlier version, which cannot be compared.
        folder: the working folder in which the run began, to which its relative paths refer; None where not known.
    """

    config_hash: str
    started_at: str
    overrides: tuple[str, ...]
    inputs: Mapping[str, str] | None = None
    folder: str | None = None

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
            identity = cls(
                content["config_hash"],
                content["started_at"],
                tuple(content["overrides"]),
                # Earlier versions wrote neither.
                dict(content["inputs"]) if content.get("inputs") is not None else None,
                content.get("folder"),
            )
            datetime.fromisoformat(identity.started_at)
            texts = [identity.config_hash, *identity.overrides, identity.folder or ""]
            texts += [text for item in (identity.inputs or {}).items() for text in item]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("texts expected")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"'{run_dir.identity}' does not say which run this is: {error}",
                "only what consensus run began can be resumed; start the run anew",
            ) from error
        return identity

    @property
    def images_hash(self) -> str | None:
        """What distinguishes rows about different images, 16 hex digits; None where it is not known."""
        return None if self.inputs is None else self.inputs.get("transfer", self.inputs["dataset"])[:16]

    def check_inputs(self, hashes: Mapping[str, str], run_dir: RunDir) -> None:
        """Checks that a run which goes on reads what it has read so far; an earlier version's cannot be checked.

        Raises:
            UserError: names what has changed.
        """
        before = hashes if self.inputs is None else self.inputs
        changed = [name for name in sorted({*before, *hashes}) if before.get(name) != hashes.get(name)]
        if changed:
            raise UserError(
                f"what {' and '.join(changed)} names is not what run '{run_dir.path.name}' began with",
                "put it back as it was, files with their times; or start another run: consensus run …",
            )


def find(output_dir: Path, config_hash: str, inputs: Mapping[str, str]) -> RunDir | None:
    """Returns the directory of the run with this configuration on these inputs, None where there is none.

    A finished run stands before the one begun last. The directory of an earlier version, which does not say what it
    read, is left out.
    """
    found = list(_same(output_dir, config_hash, inputs))
    finished = [run_dir for run_dir in found if is_done(run_dir)]
    return next(reversed(finished or found), None)


def is_done(run_dir: RunDir) -> bool:
    """Returns whether the run came to its end."""
    row = run_dir.read_row()
    return row is not None and row.get("status") == "done"


def _same(output_dir: Path, config_hash: str, inputs: Mapping[str, str]) -> Iterator[RunDir]:
    for run_dir in run_dirs(output_dir, config_hash):
        try:
            identity = Identity.read(RunDir.open(run_dir.path))
        except UserError:
            # Scores without a run, a directory that is just being made, or somebody's damaged copy.
            continue
        if identity.config_hash == config_hash and identity.inputs == inputs:
            yield run_dir
