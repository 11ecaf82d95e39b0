"""The run is a line: baseline, then score, prune and fine-tune until the ratio is reached, evaluate, record."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from consensus_cli.config.schema import RunConfig
from consensus_cli.experiment import announce, checks, inputs, limits
from consensus_cli.experiment.prepare import build_model, few_images, prepare, try_out
from consensus_cli.experiment.record import save_scores, settle
from consensus_cli.experiment.session import Sitting, find_earlier, log_into, new_run_dir, reopen, sit
from consensus_cli.experiment.steps import Steps
from consensus_cli.experiment.threads import restored
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.macs import count_macs
from consensus_cli.screen import Screen
from consensus_cli.storage import state
from consensus_cli.storage.identity import Identity, is_done
from consensus_cli.storage.rundir import RunDir, output_dir_of


def run(
    config: RunConfig, overrides: Sequence[str], screen: Screen, kept: inputs.KeptImages | None = None
) -> dict[str, object]:
    """Prunes one network as configured, and returns the row it wrote to `results.csv`, of several ratios the last.

    Args:
        config: everything that determines the run; with `if_done=skip` a finished run of the same configuration is
            not repeated, and an unfinished one continued.
        overrides: the words that led to it, for the row.
        screen: where progress and results are shown.
        kept: what keeps the images from one run of a sweep to the next.

    Raises:
        UserError: the configuration, or a file it names, is wrong; nothing has been written then.
        RunFailedError: memory, disk or training gave out; the row says so.
    """
    read = inputs.load(config, screen, kept)
    earlier = find_earlier(config, read.hashes) if config.if_done == "skip" else None
    if earlier is not None and is_done(earlier):
        return _done_already(earlier, Path(config.output_dir), screen)
    return _run(config, read, tuple(overrides), earlier, screen)


def resume(run_dir: Path, screen: Screen) -> dict[str, object]:
    """Continues a run at its last finished step, from its directory and what it reads; otherwise as `run`."""
    files = RunDir.open(run_dir)
    if is_done(files):
        return _done_already(files, output_dir_of(files), screen)
    config, files = reopen(run_dir)
    read = inputs.load(config, screen)
    Identity.read(files).check_inputs(read.hashes, files)
    return _run(config, read, (), files, screen)


def _done_already(files: RunDir, output_dir: Path, screen: Screen) -> dict[str, object]:
    screen.line(f"run {files.path.name} is done already: see {files.path}, or repeat it with if_done=rerun")
    return settle(files, output_dir, screen.warning)


@restored()
def _run(
    config: RunConfig, read: inputs.Inputs, overrides: tuple[str, ...], earlier: RunDir | None, screen: Screen
) -> dict[str, object]:
    prepared = prepare(config, screen, read.images)
    steps = Steps.begin(prepared, screen)
    with sit(config, read.hashes, overrides, earlier) as sitting, steps.tracking(sitting.files.path):
        resumed = sitting.files.state.is_file()
        announce.show_header(screen, prepared, sitting.files.path, sitting.state.removed, resumed=resumed)
        original, network = sitting.networks(steps)
        for ratio in config.ratios:
            while not steps.reached(network, ratio):
                ranking = steps.score(network, original)
                steps.prune(network, ranking, ratio)
                steps.finetune(network, original)
                sitting.save(steps, network)
            row = sitting.finished(ratio, steps) or _finish(sitting, ratio, steps.branch(), original, network)
            announce.show_comparison(screen, row)
    return row


def _finish(
    sitting: Sitting, ratio: float, steps: Steps, original: Classifier, network: Classifier
) -> dict[str, object]:
    """Fine-tunes a copy of the network for the last time, measures it, and returns the row it recorded."""
    tuned = sitting.tuned(ratio, steps)
    if tuned is None:
        tuned = state.copied(network, steps.prepared.fresh, steps.removed)
        steps.finetune_finally(tuned, original)
        sitting.save_tuned(ratio, steps, original, network, tuned)
    measured = steps.evaluate(original, tuned)
    row = sitting.finish(ratio, steps, measured)
    with steps.tracker_may_fail():
        steps.tracker.row(row, len(steps.removed))
    return row


@restored()
def score(config: RunConfig, screen: Screen) -> Path:
    """Scores the unpruned network without pruning it; returns the run directory with the scores.

    Args:
        config: as for `run`; `ratio`, `prune` and `finetune` have no effect.
        screen: where progress and scores are shown.

    Raises:
        UserError: the configuration, or a file it names, is wrong; nothing has been written then.
        RunFailedError: memory, disk, training or the network's code gave out.
    """
    prepared = prepare(config, screen, finetunes=False)
    steps = Steps.begin(prepared, screen)
    started = datetime.now(UTC)
    files = new_run_dir(config, started)
    with limits.explained(files.path, resumable=False), log_into(files), steps.tracking(files.path):
        announce.show_score_header(screen, prepared, files.path)
        original = steps.baseline()
        steps.score(original, original)
        save_scores(files, steps.scores)
        announce.show_scores(screen, steps.scores[0], files.scores)
    return files.path


def show_blocks(config: RunConfig, screen: Screen) -> None:
    """Shows every residual block of the configured network: shape, MACs, share, and why it stays if it does.

    Raises:
        UserError: the configuration is wrong, or the network has no residual blocks.
    """
    checks.check(config)
    device = checks.pick_device(config.device)
    images = inputs.read_images(config)
    built = build_model(config, images, device)
    _, blocks = try_out(config, images, built, device, screen, training_is="none", attacked=False)
    model = built.model
    with torch.no_grad():
        example = model.inputs(few_images(images, device)[0])
    announce.show_blocks(screen, config.model.name, blocks, count_macs(model.network, example[:1]))
