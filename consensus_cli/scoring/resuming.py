"""Passes that begin where a block goes: what comes before it is handed out as the whole network computed it.

A network may count on one number of images all the way: it reads it once, for the `reshape` of its last line, or gives
each image its class token early. Streams cannot join it on the way then. But each can begin where its block is: up to
there, the modules return what they returned before. That costs what streams cost: of each pass, what lies behind its
block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.utils._pytree import tree_leaves, tree_map_only

from consensus_cli.models.modes import uncompiled

#: Called instead of a module, with what would run it.
Instead = Callable[[nn.Module, Callable[[], Any]], Any]

#: A call before that of a block: which module, and under which number its result is kept if it has ended by then.
Step = tuple[nn.Module, int | None]


@dataclass
class _Call:
    """A call of a module: when it started and ended, counted in starts and ends of calls."""

    module: nn.Module
    start: int
    end: float = math.inf


class ResumedPasses:
    """Runs a network, and without each of some blocks from that block on.

    The way to each block is learned in a first pass. Blocks go from the last to the first: what a module keeps of its
    latest call is then that of the whole network wherever it is handed out.

    Attributes:
        bytes_kept: size of what the latest pass of the whole network kept to hand out.

    Args:
        network: the network; scripted modules in it are not handed out, they run.
        blocks: block -> the modules that go with it.
        without: puts a block's shortcut in the place of its modules, for a `with` block.
    """

    def __init__(
        self,
        network: nn.Module,
        blocks: Mapping[str, Sequence[nn.Module]],
        without: Callable[[str], AbstractContextManager[object]],
    ) -> None:
        self._modules = [module for module in network.modules() if not isinstance(module, ScriptModule)]
        self._blocks, self._without = blocks, without
        # Block, the last first -> the calls before its own.
        self._ways: dict[str, list[Step]] = {}
        # Calls of whose results copies are handed out, for they are written into.
        self._overwritten: set[int] = set()
        self.bytes_kept = 0

    def __call__(self, run: Callable[[], Tensor]) -> dict[str | None, Tensor]:
        """Returns what `run` returns, which runs the network: of the whole one under None, and without each block.

        Raises:
            RuntimeError: the modules before a block run in another order than in the first pass.
        """
        with uncompiled():
            if not self._ways:
                self._ways = self._learned(run)
            while True:
                results, overwritten = self._passes(run)
                if not overwritten:
                    return results
                self._overwritten |= overwritten

    def _passes(self, run: Callable[[], Tensor]) -> tuple[dict[str | None, Tensor], set[int]]:
        """Returns the results, and the calls of whose results something kept has been written into."""
        wanted = {number: module for way in self._ways.values() for module, number in way}
        kept: dict[int, Any] = {}
        versions: dict[int, list[int]] = {}
        started = iter(range(10**9))

        def keep(module: nn.Module, call: Callable[[], Any]) -> Any:
            number = next(started)
            returned = call()
            if number in wanted:
                _check_order(module, wanted[number])
                kept[number] = self._own(number, returned)
                versions[number] = _versions(kept[number])
            return returned

        with _instead(self._modules, keep):
            results: dict[str | None, Tensor] = {None: run()}
        storages = [tensor.untyped_storage() for tensor in _tensors(kept)]
        self.bytes_kept = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

        def hand_out(ahead: Iterator[Step], module: nn.Module, call: Callable[[], Any]) -> Any:
            expected, number = next(ahead, (module, None))
            _check_order(module, expected)
            return call() if number is None else self._own(number, kept[number])

        for name, way in self._ways.items():
            with self._without(name), _instead(self._modules, functools.partial(hand_out, iter(way))):
                results[name] = run()
        return results, {number for number, before in versions.items() if _versions(kept[number]) != before}

    def _own(self, number: int, values: Any) -> Any:
        """Returns values in containers of their own, and in tensors of their own where these are written into."""
        return tree_map_only(Tensor, Tensor.clone if number in self._overwritten else lambda tensor: tensor, values)

    def _learned(self, run: Callable[[], Tensor]) -> dict[str, list[Step]]:
        calls: list[_Call] = []
        clock = iter(range(10**9))

        def note(module: nn.Module, call: Callable[[], Any]) -> Any:
            noted = _Call(module, next(clock))
            calls.append(noted)
            returned = call()
            noted.end = next(clock)
            return returned

        with _instead(self._modules, note):
            run()
        begins = {
            name: min(call.start for call in calls if call.module in modules) for name, modules in self._blocks.items()
        }
        return {name: _way(calls, begins[name]) for name in sorted(begins, key=lambda name: -begins[name])}


def _way(calls: Sequence[_Call], until: int) -> list[Step]:
    """Returns the calls that start before a time, without those inside of calls that have ended by then."""
    way: list[Step] = []
    behind = -1.0
    for number, call in enumerate(calls):
        if behind < call.start < until:
            ended = call.end < until
            way.append((call.module, number if ended else None))
            behind = call.end if ended else behind
    return way


@contextmanager
def _instead(modules: Sequence[nn.Module], called: Instead) -> Iterator[None]:
    """Has a function called instead of each of some modules while the body runs; hooks of the modules run as ever."""

    def around(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return called(module, functools.partial(forward, *args, **kwargs))

    with ExitStack() as stack:
        for module in modules:
            # Some have a forward of their own, which another library has put there.
            own = vars(module).get("forward")
            module.forward = functools.partial(around, module, module.forward)
            if own is None:
                stack.callback(delattr, module, "forward")
            else:
                stack.callback(setattr, module, "forward", own)
        yield


def _check_order(module: nn.Module, expected: nn.Module) -> None:
    if module is not expected:
        raise RuntimeError("the modules of the network run in another order than in the first pass")


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _versions(values: Any) -> list[int]:
    """Returns how often each of the tensors has been written into."""
    return [tensor._version for tensor in _tensors(values)]
