"""Experiment trackers, through Accelerate's own: the same curves in the tool that a team watches anyway."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consensus_cli.errors import UserError, foreign_code, unknown_name

#: libraries that can follow a run, each an extra of the same name -> what to do where it does not start
TRACKERS = {
    "none": "",
    "tensorboard": "leave the tracker out, or see its own messages with --debug",
    "mlflow": "point MLFLOW_TRACKING_URI at a server, or at a folder with MLFLOW_ALLOW_FILE_STORE=true",
    "wandb": "log in with `wandb login`, or set WANDB_MODE=offline",
}

#: group of values -> what it is logged over; the axes of Weights & Biases, and the step elsewhere
AXES = {"train": "updates", "accuracy": "removed_blocks", "scores": "removed_blocks", "row": "removed_blocks"}


class Tracker:
    """Follows one run; without a tool (`none`) it does nothing.

    Values are named `scores/…`, `train/…`, `accuracy/…`, `row/…`; the step is the number of removed blocks, and of
    training losses the number of updates since the run began or was resumed, and in the training it went on with.

    Args:
        name: a key of `TRACKERS`.
        run_dir: the run directory; its name is the run's, and files of the tool go into it.
        settings: the configuration, nested.

    Raises:
        UserError: the tool does not start: no account, no place to store to.
    """

    def __init__(self, name: str, run_dir: Path, settings: Mapping[str, Any]) -> None:
        self._tracker = None
        if name != "none":
            with foreign_code(f"tracker={name}", TRACKERS[name]):
                self._tracker = _start(name, run_dir, _flat(settings))
        self._updates = 0

    @classmethod
    def none(cls) -> Tracker:
        """Returns a tracker that follows nothing."""
        return cls("none", Path(), {})

    def loss(self, value: float, updates: int) -> None:
        """Logs a training loss, reported after so many further updates."""
        self._updates += updates
        self._log("train", {"loss": value}, self._updates)

    def accuracy(self, pct: float, of: str, removed: int) -> None:
        """Logs the accuracy in percent on some images (`validation`, `training`) when so many blocks are gone."""
        self._log("accuracy", {f"{of}_pct": pct}, removed)

    def scores(self, values: Mapping[str, float], removed: int) -> None:
        """Logs the importance of every block when so many are gone."""
        self._log("scores", values, removed)

    def row(self, row: Mapping[str, object], removed: int) -> None:
        """Logs the numbers of the final row."""
        self._log("row", {key: v for key, v in row.items() if isinstance(v, int | float)}, removed)

    def finish(self) -> None:
        """Writes what is left."""
        if self._tracker is not None:
            self._tracker.finish()

    def _log(self, group: str, values: Mapping[str, float], step: int) -> None:
        if self._tracker is None:
            return
        named = {f"{group}/{key}": float(value) for key, value in values.items()}
        if self._tracker.name == "wandb":
            # Its own step may never fall, or the values are dropped; ours is an axis there.
            self._tracker.log(named | {AXES[group]: step})
        else:
            self._tracker.log(named, step=step)


def check_tracker(name: str) -> None:
    """Raises UserError where a tracker is unknown or its library is not installed."""
    if name not in TRACKERS:
        raise unknown_name("tracker", name, TRACKERS)
    spec = None if name == "none" else importlib.util.find_spec(name)
    # A folder `wandb` in the working folder, which Weights & Biases makes, looks like a package without code.
    if name != "none" and (spec is None or spec.origin is None):
        raise UserError(f"tracker={name} needs the library {name}", f"pip install 'consensus-cli[{name}]'")


def _start(name: str, run_dir: Path, settings: dict[str, Any]) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    # Accelerate's trackers ask which process they run in.
    PartialState()
    # What Accelerate calls a run's name is the folder, the experiment or the project that holds it.
    where = {
        "tensorboard": {"run_name": "tensorboard", "logging_dir": str(run_dir)},
        "mlflow": {"experiment_name": "consensus", "run_name": run_dir.name},
        "wandb": {"run_name": "consensus", "name": run_dir.name, "dir": str(run_dir)},
    }
    tracker = LOGGER_TYPE_TO_CLASS[name](**where[name])
    tracker.start()
    tracker.store_init_configuration(settings)
    if name == "wandb":
        for group, axis in AXES.items():
            tracker.run.define_metric(f"{group}/*", step_metric=axis)
    return tracker


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by dotted key, in types that every tool can show."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
