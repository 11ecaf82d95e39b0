"""A network whose block runs and adds nothing: what its removal must amount to."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from consensus_cli.models.modes import WatchMode, tensors_in, unfused_attention
from consensus_cli.pruning.additions import ACTIVATIONS, find_additions, shortcut_through
from consensus_cli.pruning.surgery import parts_of
from consensus_cli.pruning.trace import Trace


class Silencer(WatchMode):
    """Adds zeros where a block adds its branches, and leaves out the activations of these sums.

    Attributes:
        left: how many of them have not been met.
        untouched_by: modules on the shortcut that return their input as it is but for noise in training.
    """

    def __init__(self, trace: Trace, path: str) -> None:
        super().__init__()
        call = next(index for index, call in enumerate(trace.calls) if call.path == path)
        start, end = trace.calls[call].start, trace.calls[call].end
        shortcut = shortcut_through(trace, call, find_additions(trace))
        self.untouched_by = shortcut.untouched_by
        met = [a for a in shortcut.additions if a.branch is not None]
        sums = [
            i for i in range(start, end) if _is_sum(trace.ops[i].name, [trace.shapes[v] for v in trace.ops[i].inputs])
        ]
        activations = [i for i in range(start, end) if trace.ops[i].name in ACTIVATIONS]
        results = {trace.same[value] for addition in met for value in trace.ops[addition.op].outputs}
        # By their numbers among the like: other operations differ from mode to mode.
        self._branches = {sums.index(a.op): trace.ops[a.op].inputs.index(a.branch) for a in met if a.branch is not None}
        self._activations = {
            number for number, i in enumerate(activations) if trace.same[trace.ops[i].inputs[0]] in results
        }
        self.left = len(self._branches) + len(self._activations)
        self._sums_met = self._activations_met = 0
        self._inside = False

    def enter(self, *_: object) -> None:
        """Notes that the block starts."""
        self._inside = True

    def leave(self, *_: object) -> None:
        """Notes that the block ends."""
        self._inside = False

    def without_noise(self, _: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        """Returns what a module on the shortcut was given; others may use the same module."""
        return next(tensors_in([args, kwargs])) if self._inside else output

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._inside:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        tensors = list(tensors_in((args, kwargs)))
        if name.rstrip("_") in ACTIVATIONS:
            self._activations_met += 1
            if self._activations_met - 1 in self._activations:
                self.left -= 1
                return tensors[0] if name.endswith("_") else tensors[0].clone()
        elif _is_sum(name.rstrip("_"), [tuple(tensor.shape) for tensor in tensors]):
            self._sums_met += 1
            if self._sums_met - 1 in self._branches:
                self.left -= 1
                branch = tensors[self._branches[self._sums_met - 1]]
                if name.endswith("_") and branch is args[0]:
                    branch.zero_()
                else:
                    args = tuple(torch.zeros_like(branch) if argument is branch else argument for argument in args)
        return func(*args, **kwargs)


class DrawsInOrder(WatchMode):
    """Draws random numbers in the order of rows and columns, however a tensor lies in memory.

    Sums and activations hand on the layout of one of their operands: without a block, the same mask of dropout would
    fall on other elements.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = next(tensors_in([args]), None)
        if torch.Tag.nondeterministic_seeded not in func.tags or first is None or first.is_contiguous():
            return func(*args, **kwargs)
        result = func(*(a.contiguous() if isinstance(a, Tensor) else a for a in args), **kwargs)
        return first.copy_(result) if func.overloadpacket.__name__.endswith("_") else result


@contextmanager
def silenced(network: nn.Module, trace: Trace, name: str) -> Iterator[Silencer | None]:
    """Runs the body with a block that adds nothing.

    Args:
        network: the network that was traced, or a copy of it.
        trace: its data flow.
        name: of a block, or of a branch, whose last module then returns zeros.

    Yields:
        What silences a block, to ask whether all of it was met; None for a branch.
    """
    with ExitStack() as stack:
        for module in map(network.get_submodule, parts_of(name)):
            _let_draw_nothing(module, stack)
        if "+" in name:
            stack.enter_context(module.register_forward_hook(_zeros))
            yield None
            return
        silencer = Silencer(trace, parts_of(name)[0])
        stack.enter_context(module.register_forward_pre_hook(silencer.enter))
        stack.enter_context(module.register_forward_hook(silencer.leave, always_call=True))
        for part in map(network.get_submodule, silencer.untouched_by):
            stack.enter_context(part.register_forward_hook(silencer.without_noise, with_kwargs=True))
        stack.enter_context(unfused_attention())
        stack.enter_context(silencer)
        yield silencer


def _is_sum(name: str, shapes: Sequence[tuple[int, ...]]) -> bool:
    return name == "add" and len(shapes) == 2 and shapes[0][1:] == shapes[1][1:]


def _let_draw_nothing(module: nn.Module, stack: ExitStack) -> None:
    """Lets what comes after a module draw the random numbers that it would draw without it."""
    states: list[tuple[Any, ...]] = []
    stack.enter_context(module.register_forward_pre_hook(lambda *_: states.append(_random_state())))
    stack.enter_context(module.register_forward_hook(lambda *_: _set_random_state(states.pop()), always_call=True))


def _zeros(_: nn.Module, __: object, output: Any) -> object:
    if isinstance(output, Tensor):
        return torch.zeros_like(output)
    return tuple(torch.zeros_like(element) if isinstance(element, Tensor) else element for element in output)


def _random_state() -> tuple[Any, ...]:
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), gpus, random.getstate(), np.random.get_state()


def _set_random_state(state: tuple[Any, ...]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
    random.setstate(state[2])
    np.random.set_state(state[3])


@contextmanager
def randomness_kept() -> Iterator[None]:
    """Goes back to the state of all random numbers when the body ends."""
    state = _random_state()
    try:
        yield
    finally:
        _set_random_state(state)


def seed(number: int) -> None:
    """Seeds all random numbers that a network may draw, from wherever."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)
