"""Taking residual blocks out of a network, for good or for a moment, inside the network's own module tree.

The name of a block says all that its removal needs:

- `layer1.1`: a module, replaced by its identity shortcut;
- `encoder.layers.3+ln_1+self_attention[1of2]`: a branch of the module `encoder.layers.3`, made of its submodules
  `ln_1` and `self_attention`, of which the last is to add nothing; `[1of2]`: the first of two values it returns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from consensus_cli.errors import unknown_name
from consensus_cli.torch_modes import evaluating, tensors_in

if TYPE_CHECKING:
    from consensus_cli.pruning.blocks import Block

_PART = re.compile(r"(?P<path>.+?)(?:\[(?P<element>\d+)of(?P<count>\d+)\])?")


class Shortcut(nn.Module):
    """The identity: returns its first argument, whatever else it is called with."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Maps the first tensor among the arguments, of any shape, to itself."""
        return next(tensors_in((args, kwargs)))


class Nothing(nn.Module):
    """A branch that adds nothing: returns zeros of the shape of its first argument."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Maps the first tensor among the arguments, of any shape, to zeros of that shape."""
        return torch.zeros_like(next(tensors_in((args, kwargs))))


class OneOf(nn.Module):
    """Returns what a module returns as one element of a tuple; None elsewhere.

    Args:
        module: maps the arguments to one tensor.
        element: 1-based position in the tuple.
        count: length of the tuple.
    """

    def __init__(self, module: nn.Module, element: int, count: int) -> None:
        super().__init__()
        self.module = module
        self.element = element
        self.count = count

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
        """Returns a tuple of `count` with the module's output at `element`."""
        output = self.module(*args, **kwargs)
        return tuple(output if i == self.element else None for i in range(1, self.count + 1))


def remove_block(network: nn.Module, block: Block | str, example: Tensor | None = None) -> None:
    """Removes one block from a network, in place.

    A block in a plain `nn.Sequential` is deleted, and the others keep their names; elsewhere a `Shortcut` without
    parameters takes its place. The modules of a branch are replaced by ones without parameters.

    Postconditions, asserted: the network has fewer parameters, by as many as the block had; given an example, it
    returns for it what it returned with the block bypassed.

    Args:
        network: the network the block's name is relative to.
        block: a block of `find_blocks`, or its name.
        example: (n, ...) a batch on the network's device.

    Raises:
        UserError: the network has no such block.
    """
    expected: list[Tensor] = []
    if example is not None:
        with bypassed(network, block):
            expected = _outputs(network, example)
    parameters, going = _count_parameters(network), 0
    for path, replacement in _replacements(network, block):
        container, key = _container(network, path)
        going += _count_parameters(container.get_submodule(key))
        container._modules[key] = replacement
        if type(container) is nn.Sequential and type(replacement) is Shortcut:
            del container._modules[key]
    left = _count_parameters(network)
    assert left == parameters - going < parameters, f"{_name(block)}: {going} of {parameters} parameters, {left} left"
    if example is not None:
        pairs = zip(_outputs(network, example), expected, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), f"{_name(block)}: removed is not the same as bypassed"


def remove_blocks(network: nn.Module, blocks: Iterable[Block | str]) -> None:
    """Removes several blocks, in place, in the order given: rebuilds a pruned network from recorded names.

    Raises:
        UserError: the network has no such block.
    """
    for block in blocks:
        remove_block(network, block)


@contextmanager
def bypassed(network: nn.Module, block: Block | str) -> Iterator[nn.Module]:
    """Runs the body with a block replaced by its shortcut; the very same modules are back afterwards.

    Args:
        network: the network the block's name is relative to.
        block: a block of `find_blocks`, or its name.

    Yields:
        The network.

    Raises:
        UserError: the network has no such block.
    """
    replacements = _replacements(network, block)
    with ExitStack() as stack:
        for path, replacement in replacements:
            container, key = _container(network, path)
            stack.callback(container._modules.__setitem__, key, container._modules[key])
            container._modules[key] = replacement
        yield network


def parts_of(name: str) -> tuple[str, ...]:
    """Returns the dotted paths of the modules that go with a block: its own, or those of its branch, in order."""
    parent, *parts = name.split("+")
    if not parts:
        return (name,)
    prefix = f"{parent}." if parent else ""
    return tuple(prefix + _parse(part)["path"] for part in parts)


def _replacements(network: nn.Module, block: Block | str) -> list[tuple[str, nn.Module]]:
    """Returns (path, module to put there) for each module that goes; all exist in the network."""
    name = _name(block)
    paths = parts_of(name)
    present = dict(network.named_modules(remove_duplicate=False))
    if any(path == "" or path not in present for path in paths):
        raise unknown_name("block", name, (path for path in present if path))
    parts = [_parse(part) for part in name.split("+")[1:]]
    if not parts:
        return [(name, Shortcut())]
    modules: list[nn.Module] = [Shortcut() for _ in parts[:-1]] + [Nothing()]
    for i, part in enumerate(parts):
        if part["element"]:
            modules[i] = OneOf(modules[i], int(part["element"]), int(part["count"]))
    return [(path, module.train(network.training)) for path, module in zip(paths, modules, strict=True)]


def _parse(part: str) -> re.Match[str]:
    match = _PART.fullmatch(part)
    assert match is not None
    return match


def _name(block: Block | str) -> str:
    return block if isinstance(block, str) else block.name


def _container(network: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, key = path.rpartition(".")
    return network.get_submodule(parent), key


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _outputs(network: nn.Module, example: Tensor) -> list[Tensor]:
    with evaluating(network):
        return list(tensors_in([network(example)]))
