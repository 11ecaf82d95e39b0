"""What a run needs to go on where it stopped: one file, so that a kill leaves the earlier state or the new one.

The file is a safetensors file of the network's weights with everything else as JSON in its header. No state of a
random generator is in it: every phase seeds its own from the run's seed and the number of removed blocks. Optimisers
have no state either: each training begins with a new one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError, safe_open
from torch import Tensor

from consensus_cli.errors import UserError
from consensus_cli.evaluation.cost.energy import Consumption
from consensus_cli.evaluation.cost.savings import Measured
from consensus_cli.evaluation.statistics import Saving
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.weights import serialize
from consensus_cli.pruning.replacement import MapForm
from consensus_cli.storage.atomic import write_atomic

_KEY = "state"

#: phase (`baseline`, `score`, `heal`, `finetune`, `evaluate`) -> what it used
Phases = dict[str, Consumption]


@dataclass
class RunState:
    """Where a run stands: what its phases change, and what is saved.

    Attributes:
        removed: names of the blocks that are gone, in order of removal.
        maps: removed block -> form of the map in its place (`MapForm` as plain values), where there is one.
        scores: one line per removal, block and metric (see `scores.csv`), which is where they are saved.
        scorings: how often the blocks were scored.
        phases: time and energy of each phase, over all sessions.
        batch_sizes: sizes that had to be halved, by what they are of.
        threads_lowered: when the number of threads fell.
        measured: blocks that are gone (and what stands in their place) -> what the network costs without them, where
            that decides when enough is gone.
        besides: likewise -> what each of the blocks that are left saves, where one of them may be the last.
        tuned: ratio -> phases of its row, for each ratio whose final fine-tuning is done; `RATIO CONTROL` for those of
            its controls.
        duration_s: wall-clock seconds of all sessions up to the last save.
    """

    removed: list[str] = field(default_factory=list)
    maps: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    scorings: int = 0
    phases: Phases = field(default_factory=dict)
    batch_sizes: dict[str, int] = field(default_factory=dict)
    threads_lowered: list[str] = field(default_factory=list)
    measured: dict[str, Measured] = field(default_factory=dict)
    besides: dict[str, dict[str, float]] = field(default_factory=dict)
    tuned: dict[str, Phases] = field(default_factory=dict)
    duration_s: float = 0.0

    def write(self, path: Path, network: Classifier) -> None:
        """Writes the state and the network, of which the blocks in `removed` are gone."""
        content = {"format": 2, **{name: value for name, value in vars(self).items() if name != "scores"}}
        write_atomic(path, serialize(network.network, {_KEY: json.dumps(content, default=asdict)}))


def read_state(path: Path, scores: pd.DataFrame | None) -> tuple[RunState, dict[str, Tensor]]:
    """Reads a state, which may come from someone else: nothing in it is executed or taken for a path.

    Args:
        path: the state.
        scores: the content of the run's `scores.csv`, which may be one removal ahead of the state; None without one.

    Returns:
        The state, and the weights of the network without the blocks in `removed`.

    Raises:
        UserError: the file is damaged, or not the state of a run.
    """
    try:
        with safe_open(path, "pt") as file:
            content = json.loads(file.metadata()[_KEY])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        # Format 1 held the scores themselves, and called the phases stages.
        scorings = content["scorings"] if "scorings" in content else len(content["scores"])
        state = RunState(
            removed=_texts(content["removed"]),
            # Earlier states have none.
            maps={name: asdict(MapForm(**form)) for name, form in content.get("maps", {}).items()},
            scores=pd.DataFrame() if scores is None else scores[scores["step"] <= scorings],
            scorings=int(scorings),
            phases=_phases(content.get("phases", content.get("stages"))),
            batch_sizes={name: int(size) for name, size in content["batch_sizes"].items()},
            threads_lowered=_texts(content.get("threads_lowered", [])),
            measured={key: _measured(*values) for key, values in content.get("measured", {}).items()},
            besides={
                key: {name: float(share) for name, share in shares.items()}
                for key, shares in content.get("besides", {}).items()
            },
            tuned={ratio: _phases(phases) for ratio, phases in content["tuned"].items()},
            duration_s=float(content["duration_s"]),
        )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"'{path}' is not the state of a run: {error}", "delete it: the run then begins with its baseline"
        ) from error
    return state, weights


def _measured(base: Any, value: Any, low: Any, high: Any, saving: Any) -> Measured:
    share, *ends = map(float, saving)
    return Measured(float(base), float(value), float(low), float(high), Saving(share, *ends))


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError("a list of texts expected")
    return values


def _phases(content: dict[str, Any]) -> Phases:
    return {name: Consumption(**{key: float(x) for key, x in used.items()}) for name, used in content.items()}
