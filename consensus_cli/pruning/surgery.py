"""Taking residual blocks out of a network, for good or for a moment, inside the network's own module tree.

The name of a block says all that its removal needs:

- `layer1.1`: a module, replaced by its identity shortcut; `layer.1[1of2]`: one that returns the features as the
  first of two values;
- `encoder.layers.3+ln_1+self_attention[1of2]`: a branch of the module `encoder.layers.3`, made of its submodules
  `ln_1` and `self_attention`, of which the last is to add nothing; `[1of2]`: the first of two values it returns;
  `attn[:1]`: it returns the first token alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from consensus_cli.errors import UserError, did_you_mean, nearest
from consensus_cli.models.classifier import network_of
from consensus_cli.models.modes import answer, tensors_in
from consensus_cli.pruning.block import Block
from consensus_cli.pruning.removability import parameters_outside

_PART = re.compile(r"(?P<path>.+?)(?:\[(?P<element>\d+)of(?P<count>\d+)\])?(?:\[:(?P<first>\d+)\])?")


class Shortcut(nn.Module):
    """The identity: returns its first tensor, whatever else it is called with."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Maps the first tensor among the arguments, of any shape, to itself."""
        return args[0] if args and isinstance(args[0], Tensor) else next(tensors_in((args, kwargs)))


class Nothing(Shortcut):
    """A branch that adds nothing: returns zeros of the shape of its first tensor."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Maps the first tensor among the arguments, of any shape, to zeros of that shape."""
        return torch.zeros_like(super().forward(*args, **kwargs))


class First(nn.Module):
    """Returns the first tokens (or channels) of what a module returns.

    Args:
        module: maps the arguments to a tensor (n, t, ...).
        count: how many of the t are returned.
    """

    def __init__(self, module: nn.Module, count: int) -> None:
        super().__init__()
        self.module, self.count = module, count

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Returns (n, count, ...)."""
        found: Tensor = self.module(*args, **kwargs)
        return found[:, : self.count]


class InTuple(nn.Module):
    """Returns what a module returns as one of several values.

    Args:
        module: maps the arguments to one tensor.
        element: 1-based position in the tuple.
        count: length of the tuple; the others are what it was called with in their place (the size of the feature map,
            for one), or None.
    """

    def __init__(self, module: nn.Module, element: int, count: int) -> None:
        super().__init__()
        self.module, self.element, self.count = module, element, count

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Returns a tuple of `count` with the module's output at `element`."""
        values = [None if isinstance(argument, Tensor) else argument for argument in args[: self.count]]
        values += [None] * (self.count - len(values))
        values[self.element - 1] = self.module(*args, **kwargs)
        return tuple(values)


def remove_blocks(model: nn.Module, blocks: Block | str | Iterable[Block | str], example: Tensor | None = None) -> None:
    """Removes residual blocks from a network, in place and for good.

        blocks = find_blocks(resnet, images)
        remove_blocks(resnet, [blocks[4], "layer3.2"])
        optimizer = torch.optim.SGD(resnet.parameters(), lr=0.01)    # a new one: the old one holds what is gone

    A `Shortcut` without parameters takes the place of each, so that the others keep their names and places, by which a
    network may call them (`self.blocks[3]`, `zip(self.blocks, self.gains)`). The modules of a branch are replaced by
    ones without parameters. All other modules stay the very same objects, in train or eval mode as they were. Given
    recorded names, the original network becomes one that a pruned state dict fits.

    Postconditions, asserted: the network has fewer parameters, by those that only the blocks had; given an example, it
    returns for it what it returned with the blocks bypassed.

    Args:
        model: the network that the blocks were found in, or a copy of it.
        blocks: blocks of `find_blocks`, or their names, or a single one; one that is given twice goes once.
        example: (n, ...) inputs on the model's device, to check the result with.

    Raises:
        UserError: the network has no such block, it is gone already, or it cannot be removed. Nothing has changed then.
    """
    blocks = [blocks] if isinstance(blocks, Block | str) else list(blocks)
    network = network_of(model)
    names = list(dict.fromkeys(map(_name, blocks)))
    replacements = {name: _replacements(network, name) for name in names}
    for block in blocks:
        if isinstance(block, Block) and not block.removable:
            raise UserError(f"block {block.name} cannot be removed: {block.reason}", "choose blocks that are removable")
    for name, pairs in replacements.items():
        if not any(count_parameters(module) for module, _ in pairs):
            raise UserError(f"{name} has no parameters to remove", "it is gone already, or not a residual block")
    expected: list[Tensor] = []
    if example is not None:
        with bypassed(model, *names):
            expected = answer(model, example)
    exchanged = [pair for pairs in replacements.values() for pair in pairs]
    going = _own_parameters(network, [module for module, _ in exchanged])
    before = count_parameters(network)
    for module, replacement in exchanged:
        for container, key in _places(network, module):
            container.register_module(key, replacement)
    left = count_parameters(network)
    assert left == before - going, f"{', '.join(names)}: {going} of {before} parameters, {left} left"
    if example is not None:
        pairs_of_outputs = zip(answer(model, example), expected, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs_of_outputs), f"{', '.join(names)}: removed differs from bypassed"


def put_in_place(model: nn.Module, name: str, replacement: nn.Module | None) -> None:
    """Puts a module where a block stands or stood: it gets what the block got, and returns what the block returned.

    In place of a branch it returns what is added. None puts the shortcut alone there.
    """
    network = network_of(model)
    for module, new in _replacements(network, name, replacement):
        for container, key in _places(network, module):
            container.register_module(key, new)


@contextmanager
def bypassed(
    model: nn.Module, *blocks: Block | str, using: Mapping[str, nn.Module] | None = None
) -> Iterator[nn.Module]:
    """Runs the body with blocks replaced by their shortcuts; the very same modules are back afterwards.

    Args:
        model: the network that the blocks were found in.
        blocks: blocks of `find_blocks`, or their names.
        using: block name -> module that stands in its place instead, as in `put_in_place`.

    Yields:
        The model.

    Raises:
        UserError: the network has no such block.
    """
    network = network_of(model)
    names = [_name(block) for block in blocks]
    replacements = [pair for name in names for pair in _replacements(network, name, (using or {}).get(name))]
    with ExitStack() as stack:
        for module, replacement in replacements:
            for container, key in _places(network, module):
                stack.callback(container.register_module, key, module)
                container.register_module(key, replacement)
        yield model


@contextmanager
def unheard(model: nn.Module, blocks: Iterable[str]) -> Iterator[None]:
    """Runs the body with blocks that run, as they are, but of whose results the network gets the shortcut alone."""
    network = network_of(model)
    with ExitStack() as stack:
        for module, replacement in (pair for name in blocks for pair in _replacements(network, name)):

            def hand_on(_: nn.Module, args: Any, kwargs: Any, __: Any, shortcut: nn.Module = replacement) -> Any:
                return shortcut(*args, **kwargs)

            stack.enter_context(module.register_forward_hook(hand_on, with_kwargs=True))
        yield


def parts_of(name: str) -> tuple[str, ...]:
    """Returns the dotted paths of the modules that go with a block: its own, or those of its branch, in order."""
    parent, *parts = name.split("+")
    if not parts:
        return (_parse(name)["path"],)
    prefix = f"{parent}." if parent else ""
    return tuple(prefix + _parse(part)["path"] for part in parts)


def own_parameters(network: nn.Module, name: str) -> int:
    """Returns how many parameters a network loses with the block of a name."""
    return _own_parameters(network, [module for module, _ in _replacements(network, name)])


def _replacements(network: nn.Module, name: str, instead: nn.Module | None = None) -> list[tuple[nn.Module, nn.Module]]:
    """Returns each module that goes with a block and what takes its place: `instead`, or the shortcut alone."""
    present = dict(network.named_modules(remove_duplicate=False))
    if not name or any(path == "" or path not in present for path in parts_of(name)):
        close = did_you_mean(nearest(name, present))
        raise UserError(f"unknown block '{name}'", f"{close}find_blocks(model, example) names its blocks")
    going = [present[path] for path in parts_of(name)]
    parts = [_parse(part) for part in name.split("+")[1:]]
    # The first hands on zeros, not the shortcut itself: code between them may overwrite it (`nn.ReLU(inplace=True)`).
    modules: list[nn.Module] = [Nothing() if i in (0, len(parts) - 1) else Shortcut() for i in range(len(parts))]
    if not parts:
        parts, modules = [_parse(name)], [Shortcut()]
    if instead is not None:
        # What follows in a branch hands on what the first returns.
        modules = [instead, *(Shortcut() for _ in parts[1:])]
    for i, part in enumerate(parts):
        if part["first"]:
            modules[i] = First(modules[i], int(part["first"]))
        if part["element"]:
            modules[i] = InTuple(modules[i], int(part["element"]), int(part["count"]))
    return [(module, new.train(module.training)) for module, new in zip(going, modules, strict=True)]


def _parse(part: str) -> re.Match[str]:
    match = _PART.fullmatch(part)
    assert match is not None
    return match


def _name(block: Block | str) -> str:
    return block if isinstance(block, str) else block.name


def _places(network: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Returns every container that holds a module, with its name there; one module may go by several names."""
    paths = (path for path, found in network.named_modules(remove_duplicate=False) if found is module)
    return [(network.get_submodule(parent), key) for parent, _, key in (path.rpartition(".") for path in paths)]


def _own_parameters(network: nn.Module, modules: list[nn.Module]) -> int:
    """Returns how many parameters a network has in some of its modules alone."""
    elsewhere = parameters_outside(network, modules)
    unique = {id(p): p for module in modules for p in module.parameters() if id(p) not in elsewhere}
    return sum(parameter.numel() for parameter in unique.values() if not is_lazy(parameter))


def count_parameters(module: nn.Module) -> int:
    """Returns how many parameters a network has; one that hangs in several places counts once."""
    # Layers that take their size from the first input have none before it.
    return sum(parameter.numel() for parameter in module.parameters() if not is_lazy(parameter))
