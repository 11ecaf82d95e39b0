"""Networks pruned on some images and fine-tuned on others: the end of a run, carried over."""

from __future__ import annotations

from dataclasses import replace

from consensus_cli.data import ImageData
from consensus_cli.errors import UserError
from consensus_cli.experiment.building import build_model
from consensus_cli.experiment.inputs import transfer_request
from consensus_cli.experiment.prepare import Prepared
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.copying import clone
from consensus_cli.models.matching import entries
from consensus_cli.models.weights import load_given
from consensus_cli.pruning.replacement import install_forms
from consensus_cli.pruning.surgery import remove_blocks
from consensus_cli.storage.state import RunState


def carried_over(prepared: Prepared, target: ImageData | None) -> Prepared:
    """Returns what the end of a run works on: the target's images and a network for its classes.

    The network keeps the normalisation that its weights were trained with.

    Raises:
        UserError: images of another shape than those that the network was pruned on.
    """
    request = transfer_request(prepared.config)
    if target is None or request is None:
        return prepared
    shapes = [images.train.image_shape for images in (prepared.images, target)]
    if shapes[0] != shapes[1]:
        own, other = ("×".join(map(str, shape)) for shape in shapes)
        raise UserError(
            f"the network is pruned on images of {own}, and transfer.source={request.source} has {other}",
            "give both one size: dataset.image_size=32",
        )
    spec = prepared.spec
    model = replace(prepared.config.model, weights=None, num_classes=None, mean=spec.mean, std=spec.std)
    config = replace(prepared.config, dataset=request, model=model)
    built = build_model(config, target, prepared.device)
    built.model.memory_format = prepared.original.memory_format
    return replace(prepared, config=config, images=target, spec=built.spec, original=built.model)


def with_head(goal: Prepared, network: Classifier, state: RunState) -> Classifier:
    """Returns a network as the target needs it: its weights, and a fresh head unless there are as many classes.

    Args:
        goal: of `carried_over`.
        network: pruned on other images; left as it is.
        state: which of its blocks are gone, and what stands in their place.
    """
    moved = clone(goal.original)
    remove_blocks(moved.network, state.removed)
    install_forms(moved.network, state.maps)
    classes = len(goal.images.classes)
    load_given(moved.network, entries(network.network), "the network", num_classes=classes, reset_head=True)
    return moved
