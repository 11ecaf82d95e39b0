"""What a run leaves behind: its directory with everything in it, and the row of `results.csv`."""

from __future__ import annotations

import functools
import logging
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from consensus_cli import __version__
from consensus_cli.config.schema import RunConfig
from consensus_cli.errors import InterruptedRunError, UserError
from consensus_cli.evaluation.cost.cost_comparison import file_size_columns
from consensus_cli.evaluation.pair import Columns
from consensus_cli.experiment.inputs import weights_hash
from consensus_cli.experiment.steps import Steps
from consensus_cli.report.run_summary import write_summary
from consensus_cli.scoring.ranking.bootstrap import Scores
from consensus_cli.storage.atomic import write_atomic
from consensus_cli.storage.identity import Identity
from consensus_cli.storage.results import COLUMNS, append_row
from consensus_cli.storage.rundir import RESULTS_NAME, RunDir, config_hash

#: what does not change the result: where things lie and on what they are computed
_NOT_IN_HASH = (
    "output_dir",
    "device",
    "threads",
    "compile",
    "tracker",
    "dataset.root",
    "dataset.download",
    "dataset.workers",
    "if_done",
)

#: settings of later versions -> value with which a run is as it was before, so that earlier runs are still known
_LATER = {"model.reset_head": False}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One row of a run and the directory with everything behind it.

    Attributes:
        config: everything that determines the run; the last of its ratios is this row's.
        identity: which run it is.
        files: the run directory.
    """

    config: RunConfig
    identity: Identity
    files: RunDir

    def save(self, steps: Steps, measured: Columns, duration_s: float) -> dict[str, object]:
        """Writes scores and row into the run directory, and appends the row, which it returns."""
        row = self._row(steps, measured, duration_s)
        row |= file_size_columns(self.files.baseline_checkpoint, self.files.pruned_checkpoint)
        save_scores(self.files, steps.scores)
        self.files.write_row(row)
        append_row(Path(self.config.output_dir) / RESULTS_NAME, row)
        return row

    def save_failure(self, error: BaseException, duration_s: float) -> None:
        """Leaves a row with `status=failed` (or `interrupted`) and the error."""
        # A cluster's launcher leaves by SystemExit when a job's time is over.
        stopped = isinstance(error, (KeyboardInterrupt, InterruptedRunError, SystemExit))
        row = self._identity(duration_s) | {
            "status": "interrupted" if stopped else "failed",
            "error": f"{type(error).__name__}: {_one_line(str(error))}",
        }
        self.files.write_row(row)
        append_row(Path(self.config.output_dir) / RESULTS_NAME, row)

    def _identity(self, duration_s: float) -> dict[str, object]:
        """Returns what is known of the run before it has done anything."""
        config = self.config
        return {
            "run_id": self.files.path.name,
            "started_at": datetime.fromisoformat(self.identity.started_at).isoformat(timespec="seconds"),
            "duration_s": duration_s,
            "version": __version__,
            "git_commit": git_commit(),
            "overrides": shlex.join(self.identity.overrides),
            "seed": config.seed,
            "torch_version": torch.__version__,
            "model": config.model.name,
            "dataset": config.dataset.name,
            "images_hash": self.identity.images_hash,
            "criterion": config.criterion.name,
            "samples_per_class": config.metrics.samples_per_class,
            "ratio": config.ratios[-1],
            "ratio_unit": config.prune.unit,
            "run_dir": str(self.files.path),
        }

    def _row(self, steps: Steps, measured: Columns, duration_s: float) -> dict[str, object]:
        total = steps.stages.total()
        row = self._identity(duration_s) | {
            "status": "done",
            "device": _device_name(steps.prepared.device),
            "threads": torch.get_num_threads(),
            "threads_lowered": ", ".join(steps.prepared.threads.lowered) or None,
            "metrics": ";".join(steps.prepared.votes) or "none",
            "blocks_candidates": steps.prepared.candidates,
            "blocks_removed": len(steps.removed),
            "removed_blocks": ";".join(steps.removed),
            "energy_run_kwh": total.kwh,
            "co2_run_kg": total.co2_kg,
            "aggregation": self.config.criterion.aggregation,
            "precision": steps.prepared.precision,
            "scoring_precision": steps.prepared.scoring_precision,
            "energy_estimated": steps.stages.meter.estimated,
            "finetune_batch_size": steps.batch_size("training"),
            "scoring_batch_size": steps.batch_size("scoring"),
        }
        for stage in ("baseline", "score", "finetune", "evaluate"):
            used = steps.stages.stages.get(stage)
            row[f"{stage}_s"] = used.duration_s if used else 0.0
            row[f"energy_{stage}_kwh"] = used.kwh if used else 0.0
        return dict.fromkeys(COLUMNS) | row | measured


def run_hash(config: RunConfig) -> str:
    """Returns the hash of every setting that changes a run's result.

    A file of weights counts by content, not by path. What else lies in files (images, code) is told apart by
    `inputs.Inputs`, whatever its path.
    """
    plain = asdict(config)
    if (content := weights_hash(config.model)) is not None:
        plain["model"]["weights"] = content
    plain["evaluate"]["shift"] = dict.fromkeys(config.evaluate.shift)
    if config.model.target is not None:
        # Of `path/to/file.py:Class` the name counts.
        plain["model"]["target"] = config.model.target.rpartition(".py:")[2]
    if config.dataset.source == "hf" and Path(config.dataset.name).is_dir():
        plain["dataset"]["name"] = None
    as_before = [key for key, value in _LATER.items() if _value(plain, key) == value]
    return config_hash(plain, exclude=[*_NOT_IN_HASH, *as_before])


def _value(plain: Mapping[str, Any], key: str) -> object:
    return functools.reduce(lambda node, name: node[name], key.split("."), plain)


def settle(run_dir: RunDir, output_dir: Path, warn: Callable[[str], None]) -> dict[str, object]:
    """Returns the row of a finished run, having made sure that nothing is missing that a kill may have prevented.

    The results file has the row, no state is left, and there is a summary.

    Args:
        run_dir: the directory of the run.
        output_dir: the folder of the results file.
        warn: told in one line why there is no summary.

    Raises:
        UserError: the directory's row is not one that a results file can take.
    """
    row = dict.fromkeys(COLUMNS) | (run_dir.read_row() or {})
    try:
        append_row(output_dir / RESULTS_NAME, row)
    except (ValueError, TypeError) as error:
        raise UserError(f"'{run_dir.row}' holds no row: {error}", "repeat the run with if_done=rerun") from error
    run_dir.state.unlink(missing_ok=True)
    if not run_dir.summary.is_file():
        draw_summary(run_dir, row, warn)
    return row


def draw_summary(run_dir: RunDir, row: Mapping[str, object], warn: Callable[[str], None]) -> None:
    """Writes the summary and the figures of a finished run; whatever goes wrong, the run is done and its row is kept.

    Args:
        run_dir: the directory of the run, with its scores.
        row: the row of the run.
        warn: told in one line what went wrong.
    """
    try:
        write_summary(run_dir, row)
    except Exception as error:
        _log.info("no summary", exc_info=True)
        warn(f"the row is saved, but not the whole summary: {type(error).__name__}: {_one_line(str(error))}")


def save_scores(run_dir: RunDir, scores: Sequence[Scores]) -> None:
    """Writes the scores of every step so far: step, block, metric, distance, rank, sum."""
    write_atomic(run_dir.scores, score_table(scores).to_csv(index=False))


def score_table(scores: Sequence[Scores]) -> pd.DataFrame:
    """Returns one line per step, block and metric; `sum` is the importance by which the criterion decided.

    With a bootstrap, three more columns say about the block's place in the order of removal: the ends of its 95 %
    interval, and the share of the resamples in which the block is the first to go.
    """
    lines = []
    for step, said in enumerate(scores, start=1):
        ranking, stability = said.ranking, said.stability
        for i, block in enumerate(ranking.blocks):
            for metric in ranking.distances:
                line = {
                    "step": step,
                    "block": block,
                    "metric": metric,
                    "distance": ranking.distances[metric][i],
                    "rank": ranking.ranks[metric][i],
                    "sum": ranking.importance[i],
                }
                if stability is not None:
                    line |= {
                        "place_low": stability.low[i],
                        "place_high": stability.high[i],
                        "first_share": stability.least_share[i],
                    }
                lines.append(line)
    return pd.DataFrame(lines)


def git_commit() -> str:
    """Returns the commit of this package's checkout, `+changes` behind it where files differ; `none` outside one."""
    package = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(package), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # An installed wheel may lie inside somebody else's repository.
        if Path(git("rev-parse", "--show-toplevel")) != package.parent:
            return "none"
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "none"


def _one_line(text: str) -> str:
    """Returns a text that fits into a cell of the results file."""
    return " ".join(text.replace("\0", " ").encode("utf-8", "replace").decode().split())[:1000]


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
