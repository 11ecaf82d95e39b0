"""What a run leaves behind: its directory with everything in it, and the row of `results.csv`."""

from __future__ import annotations

import logging
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pandas as pd
import torch
import yaml

from consensus_cli import __version__, checkpoint
from consensus_cli.config import RunConfig
from consensus_cli.evaluation.comparison import Columns
from consensus_cli.models.classifier import Classifier
from consensus_cli.report.finish import write_summary
from consensus_cli.results import COLUMNS, append_row
from consensus_cli.rundir import RESULTS_NAME, RunDir, config_hash, write_atomic
from consensus_cli.steps import Scores, Steps

#: what does not change the result: where things lie and on what they are computed
_NOT_IN_HASH = ("output_dir", "device", "threads", "compile", "tracker", "dataset.root", "dataset.download")


@dataclass(frozen=True)
class Record:
    """A run's directory and its beginnings.

    Attributes:
        config: everything that determines the run.
        overrides: the words that led to it.
        started: when the run began, UTC.
        files: the run directory.
    """

    config: RunConfig
    overrides: tuple[str, ...]
    started: datetime
    files: RunDir

    @classmethod
    def open(cls, config: RunConfig, overrides: Sequence[str], started: datetime) -> Record:
        """Makes the run directory and writes the resolved configuration into it."""
        files = RunDir.create(Path(config.output_dir), run_hash(config), started)
        write_atomic(files.config, yaml.safe_dump(asdict(config), sort_keys=False))
        return cls(config, tuple(overrides), started, files)

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Writes the package's log into the run directory while the body runs, and the traceback if it fails."""
        logger = logging.getLogger("consensus_cli")
        handler = logging.FileHandler(self.files.log, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield
        except BaseException:
            logger.exception("the run did not end")
            raise
        finally:
            logger.removeHandler(handler)
            handler.close()

    @contextmanager
    def row_on_failure(self) -> Iterator[None]:
        """Leaves a row with `status=failed` (or `interrupted`) and the error if the body fails, and lets it through."""
        try:
            yield
        except BaseException as error:
            row = self._identity() | {
                "status": "interrupted" if isinstance(error, KeyboardInterrupt) else "failed",
                "error": f"{type(error).__name__}: {_one_line(str(error))}",
            }
            self.files.write_row(row)
            append_row(Path(self.config.output_dir) / RESULTS_NAME, row)
            raise

    def save_scores(self, scores: Sequence[Scores]) -> None:
        """Writes the scores of every step so far: step, block, metric, distance, rank, sum."""
        write_atomic(self.files.scores, score_table(scores).to_csv(index=False))

    def save(self, steps: Steps, original: Classifier, pruned: Classifier, measured: Columns) -> dict[str, object]:
        """Writes checkpoints, row and summary into the run directory, and appends the row, which it returns."""
        checkpoint.save(self.files, original, pruned, steps.prepared.spec, steps.removed)
        row = self._row(steps, measured)
        self.files.write_row(row)
        write_summary(self.files, row, score_table(steps.scores))
        append_row(Path(self.config.output_dir) / RESULTS_NAME, row)
        return row

    def _identity(self) -> dict[str, object]:
        """Returns what is known of the run before it has done anything."""
        config = self.config
        return {
            "run_id": self.files.path.name,
            "started_at": self.started.isoformat(timespec="seconds"),
            "duration_s": (datetime.now(UTC) - self.started).total_seconds(),
            "version": __version__,
            "git_commit": git_commit(),
            "overrides": shlex.join(self.overrides),
            "seed": config.seed,
            "torch_version": torch.__version__,
            "model": config.model.name,
            "dataset": config.dataset.name,
            "criterion": config.criterion.name,
            "samples_per_class": config.metrics.samples_per_class,
            "ratio": config.ratio,
            "ratio_unit": config.prune.unit,
            "run_dir": str(self.files.path),
        }

    def _row(self, steps: Steps, measured: Columns) -> dict[str, object]:
        total = steps.stages.total()
        row = self._identity() | {
            "status": "done",
            "device": _device_name(steps.prepared.device),
            "threads": torch.get_num_threads(),
            "metrics": ";".join(steps.prepared.votes) or "none",
            "blocks_candidates": steps.prepared.candidates,
            "blocks_removed": len(steps.removed),
            "removed_blocks": ";".join(steps.removed),
            "energy_run_kwh": total.kwh,
            "co2_run_kg": total.co2_kg,
            "aggregation": self.config.criterion.aggregation,
            "precision": steps.prepared.precision,
            "energy_estimated": steps.stages.meter.estimated,
        }
        for stage in ("baseline", "score", "finetune", "evaluate"):
            used = steps.stages.stages.get(stage)
            row[f"{stage}_s"] = used.duration_s if used else 0.0
            row[f"energy_{stage}_kwh"] = used.kwh if used else 0.0
        return dict.fromkeys(COLUMNS) | row | measured


def run_hash(config: RunConfig) -> str:
    """Returns the hash of everything that changes a run's result; weights count by content, not by path."""
    plain = asdict(config)
    if config.model.weights is not None:
        plain["model"]["weights"] = sha256(Path(config.model.weights).expanduser().read_bytes()).hexdigest()
    return config_hash(plain, exclude=_NOT_IN_HASH)


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
    package = Path(__file__).resolve().parent

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
