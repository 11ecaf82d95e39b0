"""The run directory: the name of every file in it, and the hash that names it."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from consensus_cli.errors import UserError
from consensus_cli.storage.atomic import write_atomic

RESULTS_NAME = "results.csv"
_RUNS = "runs"
_ROW = "row.json"


class _Inside:
    """The path of a file in a run directory."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run_dir: RunDir, _owner: type[RunDir]) -> Path:
        return run_dir.path / self.name


@dataclass(frozen=True)
class RunDir:
    """The files of one run, `<output_dir>/runs/<UTC stamp>-<hash8>[-n]/`.

    The directory is self-contained: with it alone the row can be rebuilt, the pruned network loaded and the run
    reported on.
    """

    path: Path

    #: which run this is (JSON): hashes of its configuration and of what it reads, where, when and how it began
    identity = _Inside("identity.json")
    #: the resolved configuration (YAML)
    config = _Inside("config.yaml")
    #: the scores of every removal (CSV: step, block, metric, distance, rank, sum)
    scores = _Inside("scores.csv")
    #: what the network saves without each block (CSV), where that was measured
    costs = _Inside("costs.csv")
    #: the log, plain text
    log = _Inside("run.log")
    #: the row of `results.csv` as JSON, from which `collect` rebuilds that file
    row = _Inside(_ROW)
    #: whether each network is right about each test image (JSON), by which runs are paired
    answers = _Inside("answers.json")
    #: how fast the pruned network is, and that what is saved answers as what was measured (JSON)
    certificate = _Inside("certificate.json")
    #: the final table original / pruned / change (Markdown)
    summary = _Inside("summary.md")
    #: held by the process that works on the run
    lock = _Inside(".lock")
    #: what an unfinished run needs to continue after its last finished removal (safetensors); deleted at the end
    state = _Inside("checkpoints/state.safetensors")
    #: folder of the trainings that are under way or not yet in the state (PyTorch's format)
    trainings = _Inside("checkpoints/trainings")
    #: the original network (safetensors)
    baseline_checkpoint = _Inside("checkpoints/baseline.safetensors")
    #: the pruned, fine-tuned network (safetensors)
    pruned_checkpoint = _Inside("checkpoints/pruned.safetensors")
    #: a pruned network that did not answer as the one that was measured (safetensors)
    rejected_checkpoint = _Inside("checkpoints/pruned.rejected.safetensors")
    #: how to rebuild the pruned network that `pruned_checkpoint` fits (JSON)
    pruned_structure = _Inside("checkpoints/pruned.json")
    #: every measure of the pruned network in percent of the original's (SVG)
    comparison_figure = _Inside("comparison.svg")
    #: the order in which the blocks went (SVG)
    removal_figure = _Inside("removal.svg")

    @classmethod
    def create(cls, output_dir: Path, run_hash: str, now: datetime) -> RunDir:
        """Makes a new run directory that no other process has, even one started in the same second.

        Args:
            output_dir: the folder of `results.csv`; made where absent.
            run_hash: as of `config_hash`.
            now: the start of the run.
        """
        name = f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{run_hash[:8]}"
        runs = output_dir / _RUNS
        runs.mkdir(parents=True, exist_ok=True)
        for count in itertools.count(1):
            run_dir = cls(runs / (name if count == 1 else f"{name}-{count}"))
            with suppress(FileExistsError):
                run_dir.path.mkdir()
                break
        run_dir.make()
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

    def files(self) -> list[Path]:
        """Returns every path that a run may write in its directory, whether it exists or not."""
        return [self.path / file.name for file in vars(RunDir).values() if isinstance(file, _Inside)]

    def sibling(self, run_hash: str) -> RunDir:
        """Returns the directory beside this one for another row of the same run.

        It is named after the hash of the configuration that would give that row alone, too:

            >>> RunDir(Path("runs/20250131T120000Z-0123abcd")).sibling("89abcdef0000").path.name
            '20250131T120000Z-89abcdef-of-0123abcd'
        """
        stamp, _, rest = self.path.name.partition("-")
        return RunDir(self.path.with_name(f"{stamp}-{run_hash[:8]}-of-{rest}"))

    def control(self, name: str) -> RunDir:
        """Returns the directory beside this one for the row of a control, named after both."""
        return RunDir(self.path.with_name(f"{self.path.name}-{name}"))

    def make(self) -> None:
        """Makes the directory, and in it that of the checkpoints, if they are not there."""
        self.pruned_checkpoint.parent.mkdir(parents=True, exist_ok=True)

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


def config_hash(config: Mapping[str, Any], exclude: Iterable[str] = ()) -> str:
    """Returns a hash (SHA-256, 64 hex digits) of a configuration, whatever the order of its keys.

    Args:
        config: nested; `1` and `1.0` differ, so let the schema set the types first.
        exclude: dotted keys that do not change the result, such as `output_dir` or `evaluate.threads`.

    Raises:
        KeyError: an excluded key is not in `config`, which would change every hash unnoticed.
        TypeError: a value is not a str, int, float, bool, None or list.
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
