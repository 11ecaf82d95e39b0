"""The run is a line: baseline, then score, prune and fine-tune until the ratio is reached, evaluate, record."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from consensus_cli import preflight, results, summary
from consensus_cli.config import RunConfig
from consensus_cli.record import Record
from consensus_cli.rundir import RESULTS_NAME
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
    preflight.check(config)
    steps = Steps.prepare(config, screen)
    record = Record.open(config, overrides, started)
    with record.logging():
        summary.show_header(screen, steps, record.files.path)
        original = steps.baseline()
        network = copy.deepcopy(original)
        while not steps.reached(network):
            ranking = steps.score(network, original)
            steps.prune(network, ranking)
            record.save_scores(steps.rankings)
            steps.finetune(network)
        steps.finetune_finally(network)
        measured = steps.evaluate(original, network)
        row = record.save(steps, original, network, measured)
        results.append_row(Path(config.output_dir) / RESULTS_NAME, row)
        summary.show_comparison(screen, row)
    return row
