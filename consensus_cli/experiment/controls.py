"""Controls: what equal training alone would have given, as rows of the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from consensus_cli.experiment import recipes
from consensus_cli.experiment.building import build_model
from consensus_cli.experiment.prepare import Prepared
from consensus_cli.models.classifier import Classifier
from consensus_cli.pruning.replacement import forms_of, install_forms
from consensus_cli.pruning.surgery import remove_blocks
from consensus_cli.storage.state import RunState

#: the original, trained on as the pruned network was
MORE_TRAINING = "more_training"
#: the pruned shape from fresh weights, for the epochs of the fine-tuning
SCRATCH = "scratch"
#: the same for the epochs of the original's training besides
SCRATCH_LONG = "scratch_long"
#: the original, fine-tuned on the images of `transfer`; no row is of it: it is what the pruned network is compared with
TRANSFERRED = "transferred"


def asked(controls: Sequence[str]) -> list[str]:
    """Returns the controls that a run makes, given what `controls` says: `scratch` is two."""
    return [name for name in (MORE_TRAINING, SCRATCH, SCRATCH_LONG) if name.removesuffix("_long") in controls]


def shape(control: str, state: RunState) -> RunState:
    """Returns the state that a control's network has the shape of: none of the original's blocks is gone."""
    return RunState() if control in (MORE_TRAINING, TRANSFERRED) else state


def with_maps_of(network: Classifier, state: RunState) -> RunState:
    """Returns a state with the maps that stand in a network: of those fitted some may be folded into other layers."""
    return replace(state, maps=forms_of(network.network, state.removed))


def fresh(prepared: Prepared, state: RunState) -> Classifier:
    """Returns the pruned shape with weights drawn from the run's seed."""
    config = prepared.config
    unweighted = replace(config, model=replace(config.model, weights=None))
    network = build_model(unweighted, prepared.images, prepared.device).model
    remove_blocks(network.network, state.removed)
    install_forms(network.network, state.maps)
    return network


def removals_so_far(prepared: Prepared, state: RunState) -> list[int]:
    """Returns how many blocks were gone at each fine-tuning between removals."""
    step = prepared.config.prune.step
    return [min(step * number, len(state.removed)) for number in range(1, state.scorings + 1)]


def recipe(prepared: Prepared, state: RunState, control: str) -> recipes.Recipe:
    """Returns how a network from fresh weights is trained."""
    return recipes.from_scratch(prepared.config, state.scorings, with_original=control == SCRATCH_LONG)
