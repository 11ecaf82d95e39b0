"""The experiment, from Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from consensus_cli.errors import UserError, unknown_name
from consensus_cli.storage.checkpoint import load_pruned

if TYPE_CHECKING:
    from consensus_cli.models.classifier import Classifier

SCREENS = ("quiet", "auto", "json")


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        path: its directory, with everything that it left.
        row: its row of `results.csv`: column -> value; of several ratios the last one's.
    """

    path: Path
    row: Mapping[str, object] = field(repr=False)

    def pruned(self) -> Classifier:
        """Returns the pruned network, in eval mode on the CPU; it takes images in [0, 1]."""
        return load_pruned(self.path)


def run(*overrides: str, screen: str = "quiet") -> RunResult:
    """Does what `consensus run` does: scores, prunes, fine-tunes and evaluates a network, and records the row.

        result = run("model=resnet56", "ratio=0.5")
        print(result.row["accuracy_delta_pp"], result.path)
        model = result.pruned()

    Args:
        overrides: settings as on the command line, one run's, each a text: `consensus list` shows what there is.
        screen: what is printed: `quiet`, for results and warnings; `auto`, as on the command line; `json`.

    Raises:
        UserError: the settings, or a file they name, are wrong; nothing has been written then.
        RunFailedError: memory, disk or training gave out; the row says so.
    """
    # Late: those who only rank or prune do without configuration and experiment.
    from consensus_cli.config.composition import compose_run
    from consensus_cli.experiment import pipeline
    from consensus_cli.experiment.distributed import join
    from consensus_cli.screen import open_screen

    if not all(isinstance(word, str) for word in overrides):
        raise UserError(
            "run takes settings as texts, one by one", "run('model=resnet56', 'ratio=0.5'), or run(*settings)"
        )
    if screen not in SCREENS:
        raise unknown_name("screen", screen, SCREENS)
    config = compose_run(overrides)
    with open_screen(screen if join().leads else "none") as opened:
        row = pipeline.run(config, overrides, opened)
    return RunResult(Path(str(row["run_dir"])), row)
