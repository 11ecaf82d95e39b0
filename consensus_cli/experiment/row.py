"""The row of a run: its columns, and how it gets to disk before anything is drawn."""

from __future__ import annotations

import logging
import shlex
import subprocess
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import torch

from consensus_cli import __version__
from consensus_cli.config.schema import RunConfig
from consensus_cli.errors import InterruptedRunError, UserError, described
from consensus_cli.evaluation.cost.cost_comparison import file_size_columns
from consensus_cli.evaluation.cost.energy import Consumption
from consensus_cli.experiment.prepare import Prepared
from consensus_cli.report.run_summary import write_summary
from consensus_cli.storage.identity import Identity
from consensus_cli.storage.results import COLUMNS, append_row
from consensus_cli.storage.rundir import RESULTS_NAME, RunDir
from consensus_cli.storage.state import Phases, RunState

Row = dict[str, object]

_log = logging.getLogger(__name__)


def identity_columns(config: RunConfig, identity: Identity, files: RunDir, duration_s: float) -> Row:
    """Returns what is known of a run before it has done anything.

    Args:
        config: everything that determines the run; the last of its ratios is this row's.
        identity: which run it is.
        files: the run directory.
        duration_s: wall-clock seconds up to now.
    """
    return {
        "run_id": files.path.name,
        "started_at": datetime.fromisoformat(identity.started_at).isoformat(timespec="seconds"),
        "duration_s": duration_s,
        "version": __version__,
        "git_commit": git_commit(),
        "overrides": shlex.join(identity.overrides),
        "seed": config.seed,
        "torch_version": torch.__version__,
        "model": config.model.name,
        "dataset": config.transfer.name or config.transfer.source or config.dataset.name,
        "images_hash": identity.images_hash,
        "criterion": config.criterion.name,
        "samples_per_class": config.metrics.samples_per_class,
        "ratio": config.ratios[-1] if config.prune.target is None else None,
        "ratio_unit": config.prune.target or config.prune.unit,
        "run_dir": str(files.path),
        **({} if config.transfer.source is None else {"pruned_on": config.dataset.name}),
    }


def result_columns(prepared: Prepared, state: RunState, phases: Phases, batch_sizes: Mapping[str, int]) -> Row:
    """Returns what a run did and what that took, and every other column of the results file empty.

    Args:
        prepared: what the run worked on.
        state: where it stands.
        phases: time and energy of each phase up to this row.
        batch_sizes: images in a batch of `training` and of `scoring`.
    """
    total = sum(phases.values(), Consumption())
    columns: Row = {
        "status": "done",
        "device": _device_name(prepared.device),
        "threads": torch.get_num_threads(),
        "threads_lowered": ", ".join(state.threads_lowered) or None,
        "metrics": ";".join(prepared.votes) or "none",
        "blocks_candidates": prepared.candidates,
        "blocks_removed": len(state.removed),
        "removed_blocks": ";".join(state.removed),
        "energy_run_kwh": total.kwh,
        "co2_run_kg": total.co2_kg,
        "aggregation": prepared.config.criterion.aggregation,
        "precision": prepared.precision,
        "scoring_precision": prepared.scoring_precision,
        "finetune_batch_size": batch_sizes["training"],
        "scoring_batch_size": batch_sizes["scoring"],
    }
    for name in ("baseline", "score", "finetune", "evaluate"):
        used = phases.get(name, Consumption())
        columns |= {f"{name}_s": used.duration_s, f"energy_{name}_kwh": used.kwh}
    if "measure" in phases:
        columns |= {"measure_s": phases["measure"].duration_s, "energy_measure_kwh": phases["measure"].kwh}
    if prepared.config.criterion.per != "nothing":
        columns["per"] = prepared.config.criterion.per
    if "heal" in phases:
        columns |= {"heal_s": phases["heal"].duration_s, "energy_heal_kwh": phases["heal"].kwh}
        prune = prepared.config.prune
        columns |= {"replace": prune.replace, "maps": len(state.maps), "refit": prune.refit}
    return dict.fromkeys(COLUMNS) | columns


def control_columns(config: RunConfig, control: str) -> Row:
    """Returns which control a row is of, empty for the run itself; nothing where the run makes none."""
    return {"control": control or None} if config.controls else {}


def failure_columns(error: BaseException) -> Row:
    """Returns `status=failed` (or `interrupted`) and the error."""
    # A cluster's launcher leaves by SystemExit when a job's time is over.
    stopped = isinstance(error, (KeyboardInterrupt, InterruptedRunError, SystemExit))
    status = "interrupted" if stopped else "failed"
    return {"status": status, "error": _cell(described(error))}


def file_columns(files: RunDir) -> Row:
    """Returns the sizes of the two networks on disk."""
    return dict(file_size_columns(files.baseline_checkpoint, files.pruned_checkpoint))


def write(files: RunDir, output_dir: Path, row: Row) -> None:
    """Writes a row into the run directory, then into the results file."""
    files.write_row(row)
    append_row(output_dir / RESULTS_NAME, row)


def settle(files: RunDir, output_dir: Path, warn: Callable[[str], None]) -> Row:
    """Returns the row of a finished run, having made sure that nothing is missing that a kill may have prevented.

    The results file has the row, no state is left, and there is a summary.

    Args:
        files: the directory of the run.
        output_dir: the folder of the results file.
        warn: called with one line that explains why there is no summary.

    Raises:
        UserError: the directory's row is not one that a results file can take.
    """
    row = dict.fromkeys(COLUMNS) | (files.read_row() or {})
    try:
        append_row(output_dir / RESULTS_NAME, row)
    except (ValueError, TypeError) as error:
        raise UserError(f"'{files.row}' does not hold a row: {error}", "repeat the run with if_done=rerun") from error
    files.state.unlink(missing_ok=True)
    if not files.summary.is_file():
        draw_summary(files, row, warn)
    return row


def draw_summary(files: RunDir, row: Mapping[str, object], warn: Callable[[str], None]) -> None:
    """Writes the summary and the figures of a finished run; whatever goes wrong, the run is done and its row is kept.

    Args:
        files: the directory of the run, with its scores.
        row: the row of the run.
        warn: called with one line that explains what went wrong.
    """
    try:
        write_summary(files, row)
    except Exception as error:
        _log.info("no summary", exc_info=True)
        warn(f"the row is saved, but not the whole summary: {_cell(described(error))}")


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


def _cell(text: str) -> str:
    """Returns a line that fits into a cell of the results file."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode()[:1000]


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
