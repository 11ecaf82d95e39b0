"""States of PyTorch and of networks for the time of a `with` block, and the tensors in what networks pass around."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

#: largest difference between two answers that are the same but for rounding (TF32, other algorithms), relative to the
#: largest number in them
SAME = 1e-3


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Puts a network in eval mode, without gradients, and gives every module its own mode back afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Keeps PyTorch's transformer layers from computing themselves, additions included, as one operation."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Runs compiled parts of a network as they were written: PyTorch refuses to compile what is being watched."""
    # Importing the compiler takes half a second; without it nothing is compiled.
    if {"torch._dynamo", "torch.nn.attention.flex_attention"}.isdisjoint(sys.modules):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class WatchMode(TorchDispatchMode):
    """A mode that watches the operations of a network whose compiled parts run as they were written (`uncompiled`)."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Private: PyTorch would import its compiler, in seconds, to keep it from compiling what the mode does.
        return False


@contextmanager
def following(network: nn.Module, enter: Callable[[str, Any], None], leave: Callable[[Any], Any]) -> Iterator[None]:
    """Follows which modules of a network run while the body runs.

    Args:
        network: the network; scripted modules in it cannot be followed.
        enter: called with a module's dotted path and all it is given, when it starts.
        leave: called with what it returns, when it ends; what this returns, if anything, is handed on instead.
    """
    with ExitStack() as stack:
        for path, module in network.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):

                def start(_: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
                    enter(path, [args, kwargs])

                stack.enter_context(module.register_forward_pre_hook(start, with_kwargs=True))
                stack.enter_context(module.register_forward_hook(lambda _, __, out: leave(out), always_call=True))
        yield


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def answer(network: nn.Module, example: Tensor) -> list[Tensor]:
    """Returns the tensors that a network answers with, in eval mode and without gradients.

    It gets a copy of the example, which it may overwrite.
    """
    with evaluating(network):
        return list(tensors_in([network(example.clone())]))


def alike(found: Tensor, expected: Tensor, tolerance: float = SAME) -> bool:
    """Returns whether two answers are the same but for rounding.

    That is: of one shape, and nowhere further apart than `tolerance` times the largest number expected; of other than
    floating-point numbers, equal.
    """
    if found.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return bool((found - expected).abs().max() <= tolerance * scale)


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yields the tensors in nested tuples, lists, dicts, dataclasses and objects that hold logits, in order."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from tensors_in(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_in(value)
    elif is_dataclass(values) or isinstance(getattr(values, "logits", None), Tensor):
        yield from tensors_in(getattr(values, "__dict__", {}))


class UsedParameters(TorchFunctionMode):
    """Notes which parameters a forward pass computes with, by id."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: dict[int, nn.Parameter] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.parameters |= {id(t): t for t in tensors_in([args, kwargs or {}]) if isinstance(t, nn.Parameter)}
        return func(*args, **(kwargs or {}))
