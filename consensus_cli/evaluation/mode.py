"""Evaluating networks without leaving a trace in them, and fairly against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

#: Called with what is being done, how many parts of it are done, and how many there are.
Progress = Callable[[str, int, int], None]


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Puts networks into eval mode and afterwards restores the mode of every single module.

    A bare `model.train()` would also thaw parts that were frozen in eval mode on purpose, and it is what
    torchattacks does to a network after an attack.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen_parameters(*models: nn.Module) -> Iterator[None]:
    """Switches parameter gradients off: attacks need the gradient of the image only, and some leave `.grad` behind."""
    trainable = [parameter for model in models for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def synchronize(device: torch.device | str) -> None:
    """Waits until the device has done what it was given; a CPU never has anything left to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def alternating(names: Sequence[str], turn: int) -> Sequence[str]:
    """Returns the order of what is measured in turn 0, 1, …: forwards, then backwards, so that a drift cancels."""
    return names if turn % 2 == 0 else names[::-1]
