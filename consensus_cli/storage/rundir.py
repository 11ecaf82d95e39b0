"""The run directory: the name of every file in it, and how to write them so that no killed run leaves half of one."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from consensus_cli.errors import UserError

RESULTS_NAME = "results.csv"
_RUNS = "runs"
_ROW = "row.json"
_HASH = re.compile(r"[0-9a-f]{8,}")
_PARTIAL_SUFFIX = ".part"


@dataclass(frozen=True)
class RunDir:
    """The files of one run, `<output_dir>/runs/<UTC stamp>-<hash8>[-n]/`.

    The directory is self-contained: with it alone the row can be rebuilt, the pruned network loaded and the run
    reported on.

    Example:
        >>> RunDir(Path("outputs/runs/20250131T120000Z-0123abcd")).row.name
        'row.json'
    """

    path: Path

    @classmethod
    def create(cls, output_dir: Path, run_hash: str, now: datetime) -> RunDir:
        """Makes a new run directory that no other process has, even one started in the same second.

        Args:
            output_dir: the folder of `results.csv`; made where absent.
            run_hash: lower-case hex digits, at least 8, of `config_hash`.
            now: the start of the run, with its time zone.

        Raises:
            ValueError: `run_hash` is no hash, or `now` has no time zone.
            OSError: the directory cannot be made.
        """
        if not _HASH.fullmatch(run_hash):
            raise ValueError(f"run_hash must be at least 8 lower-case hex digits, not {run_hash!r}")
        if now.tzinfo is None:
            raise ValueError("now must have a time zone")
        name = f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{run_hash[:8]}"
        runs = output_dir / _RUNS
        runs.mkdir(parents=True, exist_ok=True)
        for count in itertools.count(1):
            path = runs / (name if count == 1 else f"{name}-{count}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            break
        run_dir = cls(path)
        run_dir.checkpoints.mkdir()
        return run_dir

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Opens an existing run directory, which may come from someone else.

        Raises:
            UserError: there is no run in `path`, or one of its files is a link to somewhere outside, which writing
                would overwrite.
        """
        run_dir = cls(path)
        if not run_dir.config.is_file():
            raise UserError(
                f"'{path}' is not a run directory: it holds no {run_dir.config.name}", "give a folder below runs/"
            )
        root = path.resolve()
        for file in run_dir.files():
            if not file.resolve().is_relative_to(root):
                raise UserError(f"'{file}' leads out of its run directory", "replace the link by a copy of the file")
        return run_dir

    def files(self) -> Iterator[Path]:
        """Yields every path that a run may write in its directory, whether it exists or not."""
        yield from (self.identity, self.config, self.scores, self.log, self.row, self.summary, self.lock)
        yield from (self.state, self.baseline_checkpoint, self.pruned_checkpoint, self.pruned_structure)
        yield from (self.comparison_figure, self.removal_figure)

    @property
    def identity(self) -> Path:
        """Which run this is (JSON): hashes of its configuration and of what it reads, where, when and how it began."""
        return self.path / "identity.json"

    @property
    def lock(self) -> Path:
        """Held by the process that works on the run."""
        return self.path / ".lock"

    @property
    def config(self) -> Path:
        """The resolved configuration (YAML)."""
        return self.path / "config.yaml"

    @property
    def scores(self) -> Path:
        """The scores of every step (CSV: step, block, metric, distance, rank, sum)."""
        return self.path / "scores.csv"

    @property
    def log(self) -> Path:
        """The log, plain text."""
        return self.path / "run.log"

    @property
    def row(self) -> Path:
        """The row of `results.csv` as JSON, from which `collect` rebuilds that file."""
        return self.path / _ROW

    @property
    def state(self) -> Path:
        """What an unfinished run needs to continue at its last finished step (safetensors); gone when it is done."""
        return self.checkpoints / "state.safetensors"

    @property
    def summary(self) -> Path:
        """The final table baseline / pruned / change (Markdown)."""
        return self.path / "summary.md"

    @property
    def comparison_figure(self) -> Path:
        """Every measure of the pruned network in percent of the baseline's (SVG)."""
        return self.path / "comparison.svg"

    @property
    def removal_figure(self) -> Path:
        """The order in which the blocks went (SVG)."""
        return self.path / "removal.svg"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def baseline_checkpoint(self) -> Path:
        """The network before pruning (safetensors)."""
        return self.checkpoints / "baseline.safetensors"

    @property
    def pruned_checkpoint(self) -> Path:
        """The pruned, fine-tuned network (safetensors)."""
        return self.checkpoints / "pruned.safetensors"

    @property
    def pruned_structure(self) -> Path:
        """How to rebuild the pruned network that `pruned_checkpoint` fits (JSON)."""
        return self.checkpoints / "pruned.json"

    def sibling(self, run_hash: str) -> RunDir:
        """Returns the directory beside this one for another row of the same run.

        Args:
            run_hash: of the configuration that would give that row alone; the directory is named after it, too.

        Example:
            >>> RunDir(Path("runs/20250131T120000Z-0123abcd")).sibling("89abcdef0000").path.name
            '20250131T120000Z-89abcdef-of-0123abcd'
        """
        stamp, _, rest = self.path.name.partition("-")
        return RunDir(self.path.with_name(f"{stamp}-{run_hash[:8]}-of-{rest}"))

    def make(self) -> None:
        """Makes the directory if it is not there."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)

    def read_row(self) -> dict[str, Any] | None:
        """Returns the row of this run; None where there is none yet, or where the file holds something else."""
        try:
            row = json.loads(self.row.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return row if isinstance(row, dict) else None

    def write_row(self, row: Mapping[str, object]) -> None:
        """Writes the row of this run atomically; floats keep every digit, NaN and infinities included."""
        write_atomic(self.row, json.dumps(dict(row), indent=2) + "\n")


def row_files(output_dir: Path) -> list[Path]:
    """Returns the `row.json` of every run below `output_dir`, in the order of the directories' names."""
    return sorted((output_dir / _RUNS).glob(f"*/{_ROW}"))


def run_dirs(output_dir: Path, run_hash: str) -> list[RunDir]:
    """Returns the run directories below `output_dir` that are named after a hash, in the order in which they began."""
    return [RunDir(path) for path in sorted((output_dir / _RUNS).glob(f"*-{run_hash[:8]}*")) if path.is_dir()]


def output_dir_of(run_dir: RunDir) -> Path:
    """Returns the folder of `results.csv` that a run directory belongs to.

    Raises:
        UserError: the directory does not lie in a folder `runs`.
    """
    runs = run_dir.path.absolute().parent
    if runs.name != _RUNS:
        raise UserError(
            f"'{run_dir.path}' does not lie in a folder '{_RUNS}'", f"move it to OUTPUT_DIR/{_RUNS}/{run_dir.path.name}"
        )
    return runs.parent


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes a whole file or nothing: readers see the earlier content or the new one, also after a power cut.

    The data goes to a temporary file in the same folder, which is flushed to disk and renamed over `path`. An existing
    file keeps its permissions.

    Raises:
        OSError: the file cannot be written, such as on a full disk; the earlier file is intact and no part is left.
    """
    content = data.encode() if isinstance(data, str) else data
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_PARTIAL_SUFFIX}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            if path.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _fsync_directory(path.parent)


def remove_partial_files(path: Path) -> None:
    """Removes what killed calls of `write_atomic(path, ...)` left; the caller must be the only writer of `path`."""
    for file in path.parent.iterdir():
        if file.name.startswith(f".{path.name}.") and file.name.endswith(_PARTIAL_SUFFIX):
            file.unlink(missing_ok=True)


def config_hash(config: Mapping[str, Any], exclude: Iterable[str] = ()) -> str:
    """Returns a hash of a configuration that is the same in every process and does not depend on the order of keys.

    Args:
        config: a plain nested mapping of str, int, float, bool, None and lists. `1` and `1.0` differ, so let the
            schema set the types first.
        exclude: dotted keys that do not change the result, such as `output_dir` or `evaluate.threads`.

    Returns:
        64 lower-case hex digits (SHA-256).

    Raises:
        KeyError: an excluded key is not in `config`, which would change every hash unnoticed.
        TypeError: a value is of another type.
    """
    kept = copy.deepcopy(dict(config))
    for key in exclude:
        *parents, last = key.split(".")
        node: Any = kept
        for parent in parents:
            node = node[parent]
        del node[last]
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _fsync_directory(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
