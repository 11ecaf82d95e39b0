"""A pruned network as the stock network of fewer layers that it is: counts of blocks lowered, weights renumbered.

Nothing is known per architecture. What is gone shows in the names of the weights; which argument of the constructor
holds a count is tried. What comes out has the shapes of a stock network; that it answers like the pruned one must be
checked: blocks that alternate (those of Swin) compute something else at another place.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from consensus_cli.errors import UserError, enumerated
from consensus_cli.models import zoo
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.matching import entries
from consensus_cli.models.spec import ModelSpec
from consensus_cli.models.weights import load_into

_NUMBERED = re.compile(r"(?P<stem>(?:.*\.)?[^.\d]*)(?P<number>\d+)")
#: in names of arguments; others would be tried at the price of networks of any size
_COUNT = re.compile(r"depth|layer|block|stage")

#: values of configurations that name blocks to be looked into, of which there may be fewer; no classifier reads them
_OF_BACKBONES = ("stage_names", "out_features", "out_indices")

#: where blocks stand: what their names begin with (`stages.2.blocks.`) -> their numbers, ascending
Stacks = dict[str, list[int]]


def as_stock(pruned: Classifier, source: str) -> Classifier:
    """Returns a pruned network as the stock network of fewer layers, behind the same normalisation, in eval mode.

    Args:
        pruned: a network that was built by `zoo.build`, of which blocks are gone.
        source: `timm` or `hf`: whose stock network.

    Raises:
        UserError: there is none, and why.
    """
    assert pruned.built is not None
    spec, in_channels = pruned.built
    if spec.source != source:
        raise not_stock(f"it was built by {spec.source}, not by {source}")
    original, weights = zoo.build(spec, in_channels).network, entries(pruned.network)
    before = entries(original)
    if added := [name for name in weights if name not in before]:
        raise not_stock(f"a map stands in place of {enumerated(dict.fromkeys(map(_owner, added)))}")
    gone = set(_gone(before, weights))
    if partly := sorted(path for path in gone if not _NUMBERED.fullmatch(path)):
        raise not_stock(f"{enumerated(partly)} went, but not the whole block around it")
    stacks = _stacks(before)
    left = {stem: [n for n in numbers if f"{stem}{n}" not in gone] for stem, numbers in stacks.items()}
    arguments: dict[str, Any] = {}
    for family in dict.fromkeys(_family(_split(path)[0]) for path in sorted(gone)):
        counts = [len(left[stem]) for stem in _members(stacks, family)]
        arguments |= _lowering(spec, in_channels, original, family, counts)
    stock = zoo.build(_changed(spec, arguments), in_channels)
    renumbered = {_renumbered(name, stacks, left): tensor for name, tensor in weights.items()}
    try:
        load_into(stock.network, renumbered, "what is left")
    except UserError as error:
        told = ", ".join(f"{name}={value}" for name, value in arguments.items())
        raise not_stock(f"with {told} {error.message}") from error
    stock.classes = pruned.classes
    return stock.eval()


def not_stock(reason: str) -> UserError:
    """Returns the error for a pruned network that no stock constructor makes."""
    return UserError(
        f"the pruned network is not a stock network of fewer layers: {reason}",
        "any network can go as --format safetensors, torch-export or onnx",
    )


def _gone(before: Iterable[str], weights: Iterable[str]) -> Iterator[str]:
    """Yields the path of the outermost module that is gone, of each weight that is."""
    there = {prefix for name in weights for prefix in _prefixes(name)}
    for name in before:
        if name not in there:
            yield next(prefix for prefix in _prefixes(name) if prefix not in there)


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _split(path: str) -> tuple[str, int]:
    match = _NUMBERED.fullmatch(path)
    assert match is not None, path
    return match["stem"], int(match["number"])


def _stacks(names: Iterable[str]) -> Stacks:
    paths = {path for name in names for path in _prefixes(name) if _NUMBERED.fullmatch(path)}
    stacks: Stacks = {}
    for stem, number in sorted(map(_split, paths)):
        stacks.setdefault(stem, []).append(number)
    return stacks


def _family(stem: str) -> str:
    """Returns what the stacks of all stages have in common: `stages.2.blocks.` -> `stages.*.blocks.`."""
    return re.sub(r"\d+", "*", stem)


def _members(stacks: Stacks, family: str) -> list[str]:
    found = [stem for stem in stacks if _family(stem) == family]
    return sorted(found, key=lambda stem: [int(number) for number in re.findall(r"\d+", stem)])


def _counts(stacks: Stacks, family: str) -> list[int]:
    return [len(stacks[stem]) for stem in _members(stacks, family)]


def _lowering(spec: ModelSpec, in_channels: int, original: nn.Module, family: str, counts: list[int]) -> dict[str, Any]:
    """Returns the argument that makes the stacks of a family as long as asked, and leaves all others as they are."""
    stacks = _stacks(entries(original))
    others = {name: _counts(stacks, name) for name in dict.fromkeys(map(_family, stacks))}
    wanted = {name: found for name, found in others.items() if not name.startswith(family)} | {family: counts}
    now = others[family]
    for name in _names(spec, original):
        for value, standing in (*([(counts[0], now[0])] if len(counts) == 1 else []), (counts, now)):
            # What a configuration holds is known; of a constructor it is not.
            if spec.source == "hf" and spec.kwargs["config"][name] != standing:
                continue
            try:
                made = _stacks(entries(zoo.build(_changed(spec, {name: value}), in_channels).network))
            except UserError:
                continue
            if all(_counts(made, stack) == lengths for stack, lengths in wanted.items()):
                return {name: value}
    lengths = f"{enumerated(map(str, counts))} instead of {enumerated(map(str, now))}"
    raise not_stock(f"no argument of {spec.name} makes the blocks '{family}' {lengths}")


def _names(spec: ModelSpec, original: nn.Module) -> list[str]:
    """Returns the names of what a network is made from that sound like a number of blocks."""
    if spec.source == "hf":
        return list(filter(_COUNT.search, spec.kwargs["config"]))
    # A class may hand on what it is given to the one that it is derived from.
    classes = (cls for cls in type(original).__mro__ if issubclass(cls, nn.Module))
    names = dict.fromkeys(name for cls in classes for name in inspect.signature(cls).parameters)
    return list(filter(_COUNT.search, names))


def _changed(spec: ModelSpec, arguments: dict[str, Any]) -> ModelSpec:
    if spec.source != "hf":
        return replace(spec, kwargs=spec.kwargs | arguments)
    config = {name: value for name, value in spec.kwargs["config"].items() if name not in _OF_BACKBONES}
    return replace(spec, kwargs={"config": config | arguments})


def _renumbered(name: str, stacks: Stacks, left: Stacks) -> str:
    """Returns the name of a weight where the blocks that are left take the first of the numbers that there were."""
    parts: list[str] = []
    for part, path in zip(name.split("."), _prefixes(name), strict=True):
        parts.append(part)
        if _NUMBERED.fullmatch(path):
            stem, number = _split(path)
            parts[-1] = part.removesuffix(str(number)) + str(stacks[stem][left[stem].index(number)])
    return ".".join(parts)
