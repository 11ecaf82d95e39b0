"""The run is a line: baseline, then score, prune and fine-tune until the ratio is reached, evaluate, record."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from consensus_cli import data, preflight, summary
from consensus_cli.config import RunConfig
from consensus_cli.evaluation.complexity import complexity
from consensus_cli.identity import is_done
from consensus_cli.models.classifier import Classifier
from consensus_cli.prepare import build_model, prepare
from consensus_cli.pruning.blocks import find_blocks
from consensus_cli.pruning.costs import block_costs
from consensus_cli.record import Record, settle
from consensus_cli.rundir import RunDir
from consensus_cli.screen import Screen
from consensus_cli.sitting import Sitting, find_earlier, log_into, new_run_dir, reopen, sit
from consensus_cli.steps import Steps


def run(config: RunConfig, overrides: Sequence[str], screen: Screen) -> dict[str, object]:
    """Prunes one network as configured, and returns the row it wrote to `results.csv`, of several ratios the last.

    Args:
        config: everything that determines the run; with `if_done=skip` a finished run of the same configuration is
            not repeated, and an unfinished one continued.
        overrides: the words that led to it, for the row.
        screen: where progress and results are shown.

    Raises:
        UserError: the configuration, or a file it names, is wrong; nothing has been written then.
        RunFailedError: memory, disk or training gave out; the row says so.
    """
    return _run(config, tuple(overrides), find_earlier(config) if config.if_done == "skip" else None, screen)


def resume(run_dir: Path, screen: Screen) -> dict[str, object]:
    """Continues a run at its last finished step, from its directory alone; otherwise as `run`."""
    config, files = reopen(run_dir)
    return _run(config, (), files, screen)


def _run(config: RunConfig, overrides: tuple[str, ...], earlier: RunDir | None, screen: Screen) -> dict[str, object]:
    if earlier is not None and is_done(earlier):
        screen.line(f"run {earlier.path.name} is done already: see {earlier.path}, or repeat it with if_done=rerun")
        return settle(earlier, Path(config.output_dir))
    prepared = prepare(config, screen)
    steps = Steps.begin(prepared, screen)
    with sit(config, overrides, earlier) as sitting, steps.tracking(sitting.files.path):
        resumed = sitting.files.state.is_file()
        summary.show_header(screen, prepared, sitting.files.path, sitting.state.removed, resumed=resumed)
        original, network = sitting.networks(steps)
        for ratio in config.ratios:
            while not steps.reached(network, ratio):
                ranking = steps.score(network, original)
                steps.prune(network, ranking, ratio)
                steps.finetune(network, original)
                sitting.save(steps, network)
            row = sitting.finished(ratio) or _finish(sitting, ratio, steps.branch(), original, network)
            summary.show_comparison(screen, row)
    return row


def _finish(
    sitting: Sitting, ratio: float, steps: Steps, original: Classifier, network: Classifier
) -> dict[str, object]:
    """Fine-tunes a copy of the network for the last time, measures it, and returns the row it recorded."""
    tuned = sitting.tuned(ratio, steps, original)
    if tuned is None:
        tuned = copy.deepcopy(network)
        steps.finetune_finally(tuned, original)
        sitting.save_tuned(ratio, steps, original, network, tuned)
    measured = steps.evaluate(original, tuned)
    row = sitting.finish(ratio, steps, measured)
    steps.tracker.row(row, len(steps.removed))
    return row


def score(config: RunConfig, screen: Screen) -> Path:
    """Scores the unpruned network without pruning it; returns the run directory with the scores.

    Args:
        config: as for `run`; `ratio`, `prune` and `finetune` have no effect.
        screen: where progress and scores are shown.

    Raises:
        UserError: the configuration, or a file it names, is wrong; nothing has been written then.
    """
    prepared = prepare(config, screen)
    steps = Steps.begin(prepared, screen)
    started = datetime.now(UTC)
    files = new_run_dir(config, started)
    with log_into(files), steps.tracking(files.path):
        summary.show_score_header(screen, prepared, files.path)
        original = steps.baseline()
        steps.score(original, original)
        Record(config, (), started, files).save_scores(steps.scores)
        summary.show_scores(screen, steps.scores[0], files.scores)
    return files.path


def show_blocks(config: RunConfig, screen: Screen) -> None:
    """Shows every residual block of the configured network: shape, MACs, share, and why it stays if it does.

    Raises:
        UserError: the configuration is wrong, or the network has no residual blocks.
    """
    preflight.check(config)
    device = preflight.pick_device(config.device)
    images = data.load(**preflight.dataset_arguments(config), seed=config.seed)
    _, model = build_model(config, images, device)
    example = model.normalize(next(images.test.batches(2, device))[0])
    blocks = find_blocks(model.network, example, config.prune.granularity)
    total = complexity(model, images.test.image_shape).macs
    summary.show_blocks(screen, config.model.name, blocks, block_costs(model.network, example, blocks), total)
