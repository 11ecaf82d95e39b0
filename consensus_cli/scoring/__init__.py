"""How far the network without a block is from the network with it: representations, metrics, rank aggregation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consensus_cli.scoring.removals import Removal, prune
    from consensus_cli.scoring.samples import Samples
    from consensus_cli.scoring.score import rank_blocks

_HOMES = {"Removal": "removals", "Samples": "samples", "prune": "removals", "rank_blocks": "score"}

__all__ = ["Removal", "Samples", "prune", "rank_blocks"]


def __getattr__(name: str) -> Any:
    # Late: reports need the agreement of rankings alone, and do not wait for PyTorch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
