"""What a run needs to go on where it stopped: one file, so that a kill leaves the earlier state or the new one.

The file is a safetensors file of the network's weights with everything else as JSON in its header. No state of a
random generator is in it: every step seeds its own from the run's seed and the number of removed blocks. Optimisers
have no state either: each step's training begins with a new one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from consensus_cli.errors import UserError
from consensus_cli.evaluation.cost.energy import Consumption
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.copying import clone
from consensus_cli.models.matching import entries
from consensus_cli.models.weights import load_into, serialize
from consensus_cli.pruning.surgery import remove_blocks
from consensus_cli.scoring.ranking.bootstrap import RankStability, Scores
from consensus_cli.scoring.ranking.consensus import Ranking
from consensus_cli.storage.atomic import write_atomic

if TYPE_CHECKING:
    from consensus_cli.experiment.steps import Steps

FORMAT = 1
_KEY = "state"

Stages = dict[str, Consumption]


@dataclass
class State:
    """Where a run stands.

    Attributes:
        removed: names of the blocks that are gone, in order of removal.
        scores: what the criterion said before each step.
        stages: time and energy of each stage, over all sittings.
        batch_sizes: sizes that had to be halved, by what they are of.
        threads_lowered: when the number of threads fell.
        tuned: ratio -> stages of its row after the final fine-tuning, for each ratio whose tuned network is on disk.
        duration_s: wall-clock seconds of all sittings up to here.
    """

    removed: list[str] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)
    stages: Stages = field(default_factory=dict)
    batch_sizes: dict[str, int] = field(default_factory=dict)
    threads_lowered: list[str] = field(default_factory=list)
    tuned: dict[str, Stages] = field(default_factory=dict)
    duration_s: float = 0.0

    def note(self, steps: Steps) -> None:
        """Takes over where the steps stand."""
        self.removed, self.scores = list(steps.removed), list(steps.scores)
        self.stages, self.batch_sizes = copy.deepcopy(steps.stages.stages), dict(steps.fitting.sizes)
        self.threads_lowered = list(steps.prepared.threads.lowered)

    def put_into(self, steps: Steps) -> None:
        """Sets the steps to where this state stands."""
        steps.removed[:], steps.scores[:] = self.removed, self.scores
        steps.stages.stages = copy.deepcopy(self.stages)
        steps.fitting.sizes = dict(self.batch_sizes)
        steps.prepared.threads.lowered[:0] = self.threads_lowered

    def write(self, path: Path, network: Classifier) -> None:
        """Writes the state and the network, of which the blocks in `removed` are gone."""
        content = {"format": FORMAT, **asdict(self)}
        write_atomic(path, serialize(network.network, {_KEY: json.dumps(content, default=np.ndarray.tolist)}))


def read(path: Path) -> State:
    """Reads a state, which may come from someone else: nothing in it is executed or taken for a path.

    Raises:
        UserError: the file is damaged, or no state.
    """
    try:
        with safe_open(path, "pt") as file:
            content = json.loads(file.metadata()[_KEY])
        return State(
            removed=_texts(content["removed"]),
            scores=[_scores(said) for said in content["scores"]],
            stages=_stages(content["stages"]),
            batch_sizes={str(name): int(size) for name, size in content["batch_sizes"].items()},
            # Earlier states have none.
            threads_lowered=_texts(content.get("threads_lowered", [])),
            tuned={str(ratio): _stages(stages) for ratio, stages in content["tuned"].items()},
            duration_s=float(content["duration_s"]),
        )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, error) from error


def read_network(path: Path, fresh: Classifier, removed: Sequence[str]) -> Classifier:
    """Returns the network of a state.

    Args:
        path: the state.
        fresh: the unpruned network, which has never run; left as it is.
        removed: the blocks that are gone.

    Raises:
        UserError: the file is damaged, or its weights do not fit.
    """
    network = _without(fresh, removed)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    load_into(network.network, tensors, str(path))
    return network


def copied(network: Classifier, fresh: Classifier, removed: Sequence[str]) -> Classifier:
    """Returns a network with the weights of another, as a stop and a return to its state would.

    Beside its weights a network may keep what it computed in an earlier pass. What goes on from here must not depend
    on that, or a run that was stopped would end otherwise than one that was not.

    Args:
        network: the unpruned network without the blocks `removed`; left as it is.
        fresh: the unpruned network, which has never run; left as it is.
        removed: the blocks that are gone.
    """
    again = _without(fresh, removed)
    load_into(again.network, entries(network.network), "the network")
    return again


def _without(fresh: Classifier, removed: Sequence[str]) -> Classifier:
    network = clone(fresh)
    remove_blocks(network.network, removed)
    return network


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"'{path}' is no state of a run: {error}", "delete it: the run then begins with its baseline")


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError("a list of texts expected")
    return values


def _stages(content: dict[str, Any]) -> Stages:
    return {str(name): Consumption(**{key: float(x) for key, x in used.items()}) for name, used in content.items()}


def _scores(said: dict[str, Any]) -> Scores:
    ranking, stability = said["ranking"], said["stability"]
    return Scores(
        Ranking(
            blocks=tuple(_texts(ranking["blocks"])),
            distances={str(name): np.asarray(values) for name, values in ranking["distances"].items()},
            ranks={str(name): np.asarray(values) for name, values in ranking["ranks"].items()},
            importance=np.asarray(ranking["importance"]),
            order=np.asarray(ranking["order"]),
        ),
        None
        if stability is None
        else RankStability(
            low=np.asarray(stability["low"]),
            high=np.asarray(stability["high"]),
            least_share=np.asarray(stability["least_share"]),
            resamples=int(stability["resamples"]),
        ),
    )
