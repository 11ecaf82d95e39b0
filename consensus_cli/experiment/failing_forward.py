"""How to fix a network that fails on the images of a dataset, found by trying, in words to type."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from consensus_cli.errors import ForeignCodeError, UserError, foreign_code
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.copying import clone
from consensus_cli.models.modes import evaluating

#: sizes in pixels that networks are usually made for, tried where the given one does not work
_USUAL_SIZES = (32, 48, 64, 96, 112, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384, 448, 512)

#: how to fix a network whose copy does not compute with its own modules
ANOTHER_MODULE = "a hook or closure refers to the original; let it use the module that it is given"


def answer(model: Classifier, images: Tensor, name: str) -> Tensor:
    """Returns the logits (n, k) of a network in eval mode.

    Raises:
        UserError: names the network, whose code raises, or answers with something else.
    """
    with evaluating(model), foreign_code(name, "its forward must take a batch of images alone"):
        return model(images)


def explained(model: Classifier, images: Tensor, name: str, failure: ForeignCodeError) -> UserError:
    """Returns what a network cannot do of which a copy failed on `images` (n, c, h, w), and how to fix it.

    Other sizes and numbers of channels are tried. The network, never run before, runs where it must fail anyway.
    """
    if _answers(model, images):
        return UserError(
            f"a deep copy of {name} fails where the network itself runs: {said(failure, name)}", ANOTHER_MODULE
        )
    with torch.no_grad():
        _, channels, height, width = model.normalize(images).shape
    message = f"{name} does not take images of {channels}×{height}×{width}: {said(failure, name)}"
    counts = [channels, *(count for count in (3, 1) if count != channels)]
    # Those that change less come first.
    for size, count in ((size, count) for size in (height, *_USUAL_SIZES) for count in counts):
        copied = clone(model)
        # Straight into the network: the normalisation has the given number of channels.
        copied.normalize = nn.Identity()
        if not _answers(copied, torch.rand(len(images), count, size, size, device=images.device)):
            continue
        if (count, size) == (channels, height):
            zeros, ones = (",".join([number] * count) for number in "01")
            normalised = f"'model.mean=[{zeros}]' 'model.std=[{ones}]'"
            return UserError(message, f"it takes images in [0, 1] and normalises them itself: {normalised}")
        settings = [f"model.image_size={size}"] if size != height else []
        if (count, channels) == (3, 1):
            settings.append("'model.mean=[0.5,0.5,0.5]' 'model.std=[0.5,0.5,0.5]' (spreads grey over three channels)")
        elif count == 1 and channels > images.shape[1]:
            settings.append("one number in model.mean and model.std")
        elif (count, channels) == (1, 3):
            settings.append("a dataset of grey images, or arguments that make it take three channels in model.kwargs")
        return UserError(message, f"it takes {count}×{size}×{size}: give it {' and '.join(settings)}")
    return UserError(message, failure.hint)


def said(failure: ForeignCodeError, name: str) -> str:
    """Returns what the network's code raised, without the network's name."""
    return failure.message.removeprefix(f"{name} raised ")


def _answers(model: Classifier, images: Tensor) -> bool:
    try:
        answer(model, images, "")
    except UserError:
        return False
    return True
