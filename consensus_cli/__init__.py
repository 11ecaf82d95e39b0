"""Layer pruning of residual networks by the consensus of similarity metrics (arXiv 2411.14345)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consensus_cli.storage.checkpoint import load_pruned

__version__ = "0.1.0"
__all__ = ["__version__", "load_pruned"]


def __getattr__(name: str) -> object:
    # Late, so that `consensus --help` does not import PyTorch.
    if name == "load_pruned":
        from consensus_cli.storage.checkpoint import load_pruned

        return load_pruned
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
