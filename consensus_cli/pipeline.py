"""The run is a line: baseline, then score, prune and fine-tune until the ratio is reached, evaluate, record."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from consensus_cli import data, preflight, summary
from consensus_cli.config import RunConfig
from consensus_cli.evaluation.complexity import complexity
from consensus_cli.prepare import build_model, prepare
from consensus_cli.pruning.blocks import find_blocks
from consensus_cli.pruning.costs import block_costs
from consensus_cli.record import Record
from consensus_cli.screen import Screen
from consensus_cli.steps import Steps


def run(config: RunConfig, overrides: Sequence[str], screen: Screen) -> dict[str, object]:
    """Prunes one network as configured, and returns the row it wrote to `results.csv`.

    Args:
        config: everything that determines the run.
        overrides: the words that led to it, for the row.
        screen: where progress and results are shown.

    Raises:
        UserError: the configuration, or a file it names, is wrong; nothing has been written then.
    """
    started = datetime.now(UTC)
    prepared = prepare(config, screen)
    steps = Steps.begin(prepared, screen)
    record = Record.open(config, overrides, started)
    with record.logging(), record.row_on_failure(), steps.tracking(record.files.path):
        summary.show_header(screen, prepared, record.files.path)
        original = steps.baseline()
        network = copy.deepcopy(original)
        while not steps.reached(network):
            ranking = steps.score(network, original)
            steps.prune(network, ranking)
            record.save_scores(steps.scores)
            steps.finetune(network, original)
        steps.finetune_finally(network, original)
        measured = steps.evaluate(original, network)
        row = record.save(steps, original, network, measured)
        steps.tracker.row(row, len(steps.removed))
        summary.show_comparison(screen, row)
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
    record = Record.open(config, (), datetime.now(UTC))
    with record.logging():
        original = steps.baseline()
        steps.score(original, original)
        record.save_scores(steps.scores)
        summary.show_scores(screen, steps.scores[0], record.files.scores)
    return record.files.path


def show_blocks(config: RunConfig, screen: Screen) -> None:
    """Shows every residual block of the configured network: shape, MACs, share, and why it stays if it does.

    Raises:
        UserError: the configuration is wrong, or the network has no block that can be removed.
    """
    preflight.check(config)
    device = preflight.pick_device(config.device)
    images = data.load(**preflight.dataset_arguments(config), seed=config.seed)
    _, model = build_model(config, images, device)
    example = model.normalize(next(images.test.batches(2, device))[0])
    blocks = find_blocks(model.network, example, config.prune.granularity)
    total = complexity(model, images.test.image_shape).macs
    summary.show_blocks(screen, config.model.name, blocks, block_costs(model.network, example, blocks), total)
