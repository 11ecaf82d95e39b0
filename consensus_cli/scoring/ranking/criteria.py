"""Criteria that look at no representation: what consensus has to beat, and a user's own.

Each gives every candidate block an importance (c,) in the order of the blocks; the lowest is removed first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor, nn

from consensus_cli.errors import UserError, enumerated
from consensus_cli.pruning.block import Block
from consensus_cli.pruning.schedule import Schedule, spread
from consensus_cli.pruning.surgery import bypassed
from consensus_cli.scoring.metrics import METRICS
from consensus_cli.scoring.registry import Registry

#: the criterion that combines the rankings of several metrics
CONSENSUS = "consensus"

#: (network, candidate blocks, generator of the run) -> importance (c,), the lowest is removed first
Criterion = Callable[[nn.Module, Sequence[Block], np.random.Generator], np.ndarray]


def random_order(network: nn.Module, blocks: Sequence[Block], generator: np.random.Generator) -> np.ndarray:
    """Returns a random permutation of 1 … c, drawn from `generator`."""
    return 1.0 + generator.permutation(len(blocks))


def weight_norm(network: nn.Module, blocks: Sequence[Block], generator: np.random.Generator) -> np.ndarray:
    """Returns the mean L1 norm of the filters of each block (c,), in [0, ∞).

    A filter's L1 norm is the criterion of Li et al. (2017, "Pruning filters for efficient ConvNets"); the mean over the
    filters makes it a layer's, as in LayerPrune (Elkerdawy et al. 2020, "To filter prune, or to layer prune"). Filters
    are the rows of every weight with two or more dimensions; biases and batch norms do not count.

    Args:
        network: the network that the blocks are in.
        blocks: candidates that have filters, see `check_criterion`.
        generator: of the run; not used.
    """
    return np.array([_mean_filter_norm(network, block) for block in blocks])


def first(network: nn.Module, blocks: Sequence[Block], generator: np.random.Generator) -> np.ndarray:
    """Returns 1 … c in the order of the network: the first block goes first."""
    return np.arange(1.0, len(blocks) + 1)


def last(network: nn.Module, blocks: Sequence[Block], generator: np.random.Generator) -> np.ndarray:
    """Returns c … 1 in the order of the network: the last block goes first."""
    return np.arange(float(len(blocks)), 0, -1)


def uniform(network: nn.Module, blocks: Sequence[Block], generator: np.random.Generator) -> np.ndarray:
    """Returns 1 … c in an order that spreads over the depth, whatever the weights: the more evenly, the more go.

    Without a goal this is van der Corput's order of all blocks; `of_schedule` knows how many go, so that those are
    evenly spaced exactly. Spacing as a criterion: dropping every other layer (Fan et al. 2020, "Reducing transformer
    depth on demand with structured dropout", section 3.3); at high ratios reported ahead of rankings by similarity
    (arXiv 2603.20275).
    """
    return _places([block.name for block in blocks], [blocks[i].name for i in spread(len(blocks), len(blocks))])


def of_schedule(criterion: str | Criterion, schedule: Schedule) -> str | Criterion:
    """Returns a criterion as it is for a network that is pruned by a schedule: `uniform` spaces what goes in all."""
    if criterion != "uniform":
        return criterion
    order = schedule.evenly_spaced()

    def uniform(network: nn.Module, blocks: Sequence[Block], generator: np.random.Generator) -> np.ndarray:
        return _places([block.name for block in blocks], order)

    return uniform


def _places(names: Sequence[str], order: Sequence[str]) -> np.ndarray:
    """Returns the place of each name in an order, counted from 1."""
    return np.array([1.0 + order.index(name) for name in names])


def _problem(name: str, criterion: object) -> str:
    if not callable(criterion):
        return f"is a {type(criterion).__name__}, not a function (network, blocks, generator) -> importance"
    return "has the name of a metric" if name in METRICS or name == CONSENSUS else ""


CRITERIA: Registry[Criterion] = Registry(
    "criterion",
    "consensus_cli.criteria",
    {"random": random_order, "weight_norm": weight_norm, "uniform": uniform, "first": first, "last": last},
    _problem,
)


def register_criterion(name: str, criterion: Criterion) -> None:
    """Makes a criterion of your own known by name: `criterion.name=mine` in a run, `criterion="mine"` in Python.

    Args:
        name: letters, digits and underscores.
        criterion: (network, c candidate blocks, generator of the run) -> importance (c,), the lowest goes first.

    Raises:
        UserError: the name is taken or cannot be used.
    """
    CRITERIA.register(name, criterion)


def check_criterion(criterion: str, network: nn.Module, blocks: Sequence[Block]) -> None:
    """Checks that a criterion can rank the candidates.

    Args:
        criterion: any name; only `weight_norm` has a condition.
        network: the network that the blocks are in.
        blocks: the candidates.

    Raises:
        UserError: a norm of weights is asked for, and some candidates have none.
    """
    if criterion != "weight_norm":
        return
    without = [block.name for block in blocks if not _filters(network, block)]
    if without:
        raise UserError(
            f"criterion={criterion} compares weights; {len(without)} of {len(blocks)} candidates have none: "
            f"{enumerated(without)}",
            "choose another criterion, such as consensus or random",
        )


def _mean_filter_norm(network: nn.Module, block: Block) -> float:
    weights = _filters(network, block)
    return sum(weight.double().abs().sum().item() for weight in weights) / sum(len(weight) for weight in weights)


def _filters(network: nn.Module, block: Block) -> list[Tensor]:
    # A block need not be a module of its own: its weights are those that the network lacks without it.
    with bypassed(network, block):
        left = set(network.parameters())
    gone = (weight.detach() for weight in network.parameters() if weight not in left)
    return [weight for weight in gone if weight.ndim >= 2 and len(weight) > 0]
